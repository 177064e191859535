"""Settings of main_score.py and main_prune.py."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from amp.errors import UserError
from amp.registry import ALLOCATIONS, COMPENSATIONS, SEARCHES
from amp.settings.base import (
    ASIDE,
    MOST_LAYERS,
    MOST_WIDTH,
    WHERE_SET,
    Count,
    Fraction,
    NonNegative,
    Positive,
    Settings,
    Some,
    names_of,
)
from amp.settings.data import DataSettings
from amp.settings.model import Frame, ModelSettings
from amp.settings.run import OutputSettings, RunConfig
from amp.settings.score import ScoreSettings

if TYPE_CHECKING:
    Allocation = str
    Compensation = str
    Search = str
else:
    Allocation = names_of(ALLOCATIONS)
    Compensation = names_of(COMPENSATIONS, "none")
    Search = names_of(SEARCHES)

Width = Annotated[int, Field(ge=1, le=MOST_WIDTH)]
Block = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]

ALIGNED = 8  # neurons; GPUs multiply matrices faster if widths are multiples of it
OF_SEQUENTIAL, OF_RECOVERY = ("refit_steps", "refit_views"), ("recover_steps", "recover_images")
FINEST = 64  # least number of widths to choose from in a block, as in the published search
PUBLISHED = ("plain", "exact")  # searches that use the paper's own widths if there is no target

Attention = Literal["none", "heads", "auto"]

# The recommended settings, used if only a model, images and a size are given.
RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    "data": {"batch_size": 64, "num_samples": 2048, "num_val_samples": 512},
    "score": {"criterion": "reconstruction"},
    "prune": {"allocation": "global", "compensation": "sequential", "attention": "auto"},
}


class PruneDataSettings(DataSettings):
    num_samples: Count | None = Field(None, description="number of images for scoring; null: all")
    num_val_samples: Count | None = Field(
        None, description="number of held-out images for search and measurements; null: all"
    )

    @model_validator(mode="after")
    def _samples_fill_a_batch(self) -> "PruneDataSettings":
        for key in ("num_samples", "num_val_samples"):
            value = getattr(self, key)
            if value is not None and value < self.batch_size:
                raise ValueError(f"{key} {value} is less than one batch of {self.batch_size} images")
        return self


class TargetSettings(Settings):
    params: Fraction | None = Field(None, description="parameters of the pruned tower, as a share of the dense tower's")
    flops: Fraction | None = Field(None, description="FLOPs of the pruned tower, as a share of the dense tower's")
    throughput: Annotated[float, Field(gt=1, le=10_000)] | None = Field(
        None,
        description="images per second, as a multiple of the dense tower's; measured on this machine in batches of 64",
    )
    latency: Fraction | None = Field(
        None, description="time for one image, as a share of the dense tower's; measured on this machine"
    )

    @property
    def asked(self) -> tuple[str, float] | None:
        """The target that is set, and its value; None: no target."""
        return next(((key, value) for key, value in self.model_dump().items() if value is not None), None)

    @property
    def left(self) -> float | None:
        """The target as a share of the dense tower's size; for a speed, of its time for an image."""
        if self.asked is None:
            return None
        key, value = self.asked
        return 1 / value if key == "throughput" else value

    @model_validator(mode="after")
    def _one(self) -> "TargetSettings":
        given = [key for key, value in self.model_dump().items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give only one target")
        return self


class SearchSettings(Settings):
    allocation: Allocation = Field(
        "search",
        description="rule that gives each block its width. uniform: the same share for all; global: one threshold on "
        "all scores",
    )
    entropy_increase: NonNegative = Field(
        1.0e-2, description="how much a block may raise the entropy of held-out features, in nats"
    )
    search_steps: Annotated[int, Field(ge=1, le=32)] = Field(
        6, description="steps of the bisection, each a measurement, for each block"
    )
    widths: Some[Width] | None = Field(None, description="a list with the width of each block; replaces the search")
    search: Search = Field(
        "exact",
        description="search method. exact: does not rerun the blocks before the searched one; racing: also uses fewer "
        "batches",
    )
    preset: Literal["strict", "fast"] = Field(
        "strict",
        description="for racing. strict: the widths of the exact search, or the next ones; fast: the least time",
    )
    confidence: Positive | None = Field(
        None,
        description="for racing: standard errors by which a measurement must differ from the limit; null: the preset's",
    )
    tolerance: NonNegative | None = Field(
        None,
        description="for racing: distance from the limit at which either decision is accepted, as a share of "
        "entropy_increase; null: the preset's",
    )
    store: Literal["auto", "device", "host", "disk"] = Field(
        "auto",
        description="where images and the blocks' inputs are stored. auto: on the GPU as long as two fifths of its "
        "memory stay free, then in host memory",
        **ASIDE,
    )
    store_every: Count = Field(4, description="store the inputs of every n-th block and recompute the others", **ASIDE)
    target: TargetSettings = TargetSettings()
    width_multiple: Width | None = Field(
        None,
        description="widths are multiples of this number, for speed. null: 8, or less in towers narrower than 512; 1 "
        "for search: exact or plain without a target, which use the paper's widths",
    )
    min_width: Width = Field(1, description="smallest width of a block")
    blocks: Some[Block] | None = Field(
        None, description="indices of the blocks that may be pruned, starting at 0; null: all"
    )
    two_sided: bool = Field(
        False, description="also refuse widths at which the entropy falls by more than entropy_increase"
    )
    total_increase: Positive | None = Field(
        None, description="how much all blocks together may raise the entropy, in nats; null: no limit"
    )
    attention: Attention = Field(
        "none",
        description="what to remove from attention. heads: whole heads, together with neurons, by the same loss; needs "
        "criterion reconstruction, allocation global and a target of params or flops. auto: heads, if the "
        "other settings and the model allow it",
        **WHERE_SET,
    )
    compensation: Compensation = Field(
        "none",
        description="refit of out-projections, so that kept neurons replace removed ones. mean, ridge: each MLP "
        "separately; sequential: block by block, from the outputs of the pruned blocks before, and "
        "attention too",
    )
    compensate_in_search: bool = Field(True, description="apply the compensation before each measurement of the search")
    damping: NonNegative = Field(
        1e-3,
        description="for ridge and sequential: value added to the activations' variances, as a share of their mean",
    )
    refit_steps: Annotated[int, Field(ge=0, le=100_000)] = Field(
        150,
        description="for sequential: steps of gradient descent on each block's MLP, including its in-projections",
    )
    refit_views: Annotated[int, Field(ge=1, le=64)] = Field(
        2,
        description="for sequential: views of each calibration image: the image itself, and random crops of it",
    )
    recover_steps: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0,
        description="training steps of the whole pruned tower towards the dense features, without labels; 0: none",
    )
    recover_images: Count | None = Field(
        None, description="number of calibration images for these training steps; null: all"
    )
    num_calibration_samples: Count = Field(
        2048, description="number of images from the training split for compensation and recovery"
    )

    @property
    def multiple(self) -> int:
        """`width_multiple`, or its default in towers that are not narrow."""
        if self.width_multiple is not None:
            return self.width_multiple
        published = self.allocation == "search" and self.search in PUBLISHED and not self.target.asked
        return 1 if published or self.widths is not None else ALIGNED

    def multiple_in(self, width: int) -> int:
        """The same for a tower whose widest block has `width` neurons."""
        own = self.multiple
        while self.width_multiple is None and own > 1 and width < FINEST * own:
            own //= 2
        return own

    def decisive(self, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
        """The settings that decide the result: `width_multiple` with its default filled in, without unused settings."""
        leave_out += () if self.compensation == "sequential" else OF_SEQUENTIAL
        leave_out += () if self.recover_steps else OF_RECOVERY
        return {**super().decisive(leave_out), "width_multiple": self.multiple}

    def check_calibration(self, key: str, batch_size: int) -> None:
        """Raises ValueError if the calibration images are needed, or set, and do not fill a batch."""
        asked = self.compensation != "none" or self.recover_steps or "num_calibration_samples" in self.model_fields_set
        counts = {"num_calibration_samples": self.num_calibration_samples} if asked else {}
        counts |= {} if self.recover_images is None else {"recover_images": self.recover_images}
        for name, count in counts.items():
            if count < batch_size:
                raise ValueError(f"{key}.{name} {count} is less than one batch of {batch_size} images")

    @model_validator(mode="after")
    def _one_way_to_widths(self) -> "SearchSettings":
        if self.widths is not None and self.target.asked:
            raise ValueError("widths and target: give only one of them")
        return self

    @model_validator(mode="after")
    def _heads_are_allocated(self) -> "SearchSettings":
        if self.attention == "heads" and (need := self.heads_need()):
            raise ValueError(f"attention: heads needs {need}")
        return self

    def heads_need(self, criterion: str = "reconstruction") -> str | None:
        """What is missing in these settings, with this criterion, to remove heads; None: nothing."""
        if criterion != "reconstruction":
            return f"criterion: reconstruction, not {criterion}"
        if self.allocation != "global":
            return f"allocation: global, not {self.allocation}"
        if self.target.asked and self.target.asked[0] not in ("params", "flops"):
            return "a target of params or flops"
        return None

    def attention_by(self, criterion: str) -> Attention:
        """`attention`; none if it is auto and other settings do not allow the removal of heads."""
        return "none" if self.attention == "auto" and self.heads_need(criterion) else self.attention

    @model_validator(mode="after")
    def _search_alone_has(self) -> "SearchSettings":
        for key in ("widths", "blocks", "total_increase", "two_sided"):
            if self.allocation != "search" and getattr(self, key):
                raise ValueError(f"{key}: allocation: {self.allocation} does not search; remove this setting")
        return self


class PruneConfig(RunConfig):
    """Settings of main_score.py and main_prune.py."""

    model: ModelSettings
    data: PruneDataSettings
    score: ScoreSettings = ScoreSettings()
    prune: SearchSettings = SearchSettings()
    output: OutputSettings = Field(**ASIDE)

    @model_validator(mode="after")
    def _calibration_fills_a_batch(self) -> "PruneConfig":
        self.prune.check_calibration("prune", self.data.batch_size)
        return self

    @model_validator(mode="after")
    def _heads_have_scores(self) -> "PruneConfig":
        if self.prune.attention == "heads" and (need := self.prune.heads_need(self.score.criterion)):
            raise ValueError(f"prune.attention: heads needs score.{need}")
        return self

    @property
    def attention(self) -> Attention:
        """See `SearchSettings.attention_by`."""
        return self.prune.attention_by(self.score.criterion)

    def check_has_size(self) -> None:
        """Raises UserError if the allocation needs a target size and none is set."""
        if self.prune.allocation != "search" and not self.prune.target.asked:
            text = f"missing; prune.allocation: {self.prune.allocation} needs a target size, here or in --sweep"
            raise UserError("prune.target", text)

    @property
    def dense(self) -> ModelSettings:
        """The dense model."""
        return self.model

    def of_target(self, key: str, value: float) -> Self:
        """The same settings with this target in `prune.target`."""
        own = self.prune.model_copy(update={"target": TargetSettings.model_validate({key: value})})
        return self.model_copy(update={"prune": own})

    def with_frame(self, frame: Frame | None) -> Self:
        """The same settings with `model.frame` filled in if it was None."""
        return self.model_copy(update={"model": self.model.model_copy(update={"frame": self.model.frame or frame})})
