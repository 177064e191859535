"""Settings of a scoring."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from amp.registry import CRITERIA
from amp.settings.base import ASIDE, Count, Positive, Seed, Settings, Template, names_of

if TYPE_CHECKING:
    Criterion = str
else:
    Criterion = names_of(CRITERIA)


class ScoreSettings(Settings):
    criterion: Criterion = Field("entropy", description="what ranks the neurons")
    inverse_temperature: Positive = Field(15.0, description="factor on the similarities in the entropy")
    absolute: bool = Field(True, description="absolute value per image before the mean")
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        None, description="class names for 'cross_entropy', in the order of their sorted folders"
    )
    template: Template | None = Field(None, description="prompt around a class, null: 'a photo of a {c}'")
    labels: Literal["folders"] | None = Field(
        None, description="classes of the images for 'cross_entropy'; null: as the network predicts"
    )
    seed: Seed = Field(0, description="seed of the criteria 'random', 'kl' and 'reconstruction'")
    micro_batch: Count | None = Field(
        None,
        description="images of a process whose graph is kept; of the others, blocks are computed again; null: all",
        **ASIDE,
    )
    keep_moments: bool = Field(
        False,
        description="of 'reconstruction': keep what refits are made of, in the folder 'moments', half of the squared "
        "hidden width in fp64 a block; then ridge and mean take no images again",
        **ASIDE,
    )
    save_every: Count = Field(50, description="batches after which a killed run can go on", **ASIDE)

    @model_validator(mode="after")
    def _classes_are_there(self) -> "ScoreSettings":
        if self.criterion == "cross_entropy" and self.classes is None:
            raise ValueError("classes: missing; criterion cross_entropy needs the classes' names, a list")
        if self.keep_moments and self.criterion != "reconstruction":
            raise ValueError(f"keep_moments: criterion {self.criterion} sums none; only reconstruction does")
        return self
