"""Settings of the scoring."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from amp.registry import CRITERIA
from amp.settings.base import ASIDE, Count, Positive, Seed, Settings, Template, names_of

if TYPE_CHECKING:
    Criterion = str
else:
    Criterion = names_of(CRITERIA)


class ScoreSettings(Settings):
    criterion: Criterion = Field("entropy", description="rule that ranks the neurons")
    inverse_temperature: Positive = Field(
        15.0, description="factor that multiplies the similarities before the softmax in the entropy"
    )
    absolute: bool = Field(True, description="take the absolute value for each image before averaging over images")
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        None, description="class names for criterion cross_entropy, in the order of the sorted class folders"
    )
    template: Template | None = Field(None, description="prompt for a class name {c}; null: 'a photo of a {c}'")
    labels: Literal["folders"] | None = Field(
        None,
        description="labels for criterion cross_entropy: the class folders; null: the model's own predictions",
    )
    seed: Seed = Field(0, description="random seed of the criteria random, kl and reconstruction")
    micro_batch: Count | None = Field(
        None,
        description="images in each micro-batch of a process, to save memory; blocks are then run twice; null: the "
        "whole batch",
        **ASIDE,
    )
    keep_moments: bool = Field(
        False,
        description="for criterion reconstruction: store covariances in the folder moments (for each block, half of the"
        " squared hidden width in fp64); then ridge and mean need no pass over the images",
        **ASIDE,
    )
    save_every: Count = Field(
        50, description="save the progress after this many batches, so that an interrupted run can continue", **ASIDE
    )

    @model_validator(mode="after")
    def _classes_are_there(self) -> "ScoreSettings":
        if self.criterion == "cross_entropy" and self.classes is None:
            raise ValueError("classes: missing; criterion cross_entropy needs a list of class names")
        if self.keep_moments and self.criterion != "reconstruction":
            raise ValueError(f"keep_moments: criterion {self.criterion} computes no moments; only reconstruction does")
        return self
