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

ALIGNED = 8  # neurons, of which hardware that multiplies matrices wants multiples
OF_SEQUENTIAL, OF_RECOVERY = ("refit_steps", "refit_views"), ("recover_steps", "recover_images")
FINEST = 64  # widths of a block that are to choose from at least: as many as the published search has
PUBLISHED = ("plain", "exact")  # searches of the paper's own grid, where no size is asked for

# The settings that keep most at a size of one's choice, for whoever names a model, images and a size and no more.
Attention = Literal["none", "heads", "auto"]

RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    "data": {"batch_size": 64, "num_samples": 2048, "num_val_samples": 512},
    "score": {"criterion": "reconstruction"},
    "prune": {"allocation": "global", "compensation": "sequential", "attention": "auto"},
}


class PruneDataSettings(DataSettings):
    num_samples: Count | None = Field(None, description="images to score on; null: all")
    num_val_samples: Count | None = Field(None, description="held-out images to search on; null: all")

    @model_validator(mode="after")
    def _samples_fill_a_batch(self) -> "PruneDataSettings":
        for key in ("num_samples", "num_val_samples"):
            value = getattr(self, key)
            if value is not None and value < self.batch_size:
                raise ValueError(f"{key} {value} is less than one batch of batch_size {self.batch_size}")
        return self


class TargetSettings(Settings):
    params: Fraction | None = Field(None, description="parameters of the pruned tower, of the dense one's")
    flops: Fraction | None = Field(None, description="FLOPs of the pruned tower, of the dense one's")
    throughput: Annotated[float, Field(gt=1, le=10_000)] | None = Field(
        None, description="images a second, times the dense tower's; measured on the device at hand, by batches of 64"
    )
    latency: Fraction | None = Field(
        None, description="seconds of one image, of the dense tower's; measured on the device at hand"
    )

    @property
    def asked(self) -> tuple[str, float] | None:
        """What is to be met, and how much of it."""
        return next(((key, value) for key, value in self.model_dump().items() if value is not None), None)

    @property
    def left(self) -> float | None:
        """What is to be left of the dense tower's size; of its seconds an image where a speed is asked for."""
        if self.asked is None:
            return None
        key, value = self.asked
        return 1 / value if key == "throughput" else value

    @model_validator(mode="after")
    def _one(self) -> "TargetSettings":
        given = [key for key, value in self.model_dump().items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: one target at a time")
        return self


class SearchSettings(Settings):
    allocation: Allocation = Field(
        "search",
        description="what gives each block its width. uniform: one share for all; global: one threshold of the scores",
    )
    entropy_increase: NonNegative = Field(
        1.0e-2, description="what a block may add to the entropy of held-out features, in nats"
    )
    search_steps: Annotated[int, Field(ge=1, le=32)] = Field(
        6, description="measurements per block: steps of a bisection"
    )
    widths: Some[Width] | None = Field(None, description="one width a block; skips the search")
    search: Search = Field(
        "exact",
        description="exact: blocks before the one searched are not run again; racing: also few batches a measurement",
    )
    preset: Literal["strict", "fast"] = Field(
        "strict", description="of racing. strict: the exact search's widths, or the next; fast: the cheapest"
    )
    confidence: Positive | None = Field(
        None, description="of racing: standard errors between a measurement and the limit; null: the preset's"
    )
    tolerance: NonNegative | None = Field(
        None, description="of racing: share of entropy_increase in which either answer is right; null: the preset's"
    )
    store: Literal["auto", "device", "host", "disk"] = Field(
        "auto",
        description="where images and blocks' inputs are kept. auto: on a GPU as long as two fifths of its memory stay "
        "free, then in the host's",
        **ASIDE,
    )
    store_every: Count = Field(4, description="keep the inputs of every n-th block, recompute the others", **ASIDE)
    target: TargetSettings = TargetSettings()
    width_multiple: Width | None = Field(
        None,
        description="widths are multiples of it, as hardware likes them. null: 8, or less in towers narrower than 512; "
        "1 where search: exact or plain meets no target, and keeps the paper's own grid",
    )
    min_width: Width = Field(1, description="no width is smaller")
    blocks: Some[Block] | None = Field(None, description="numbers of the blocks that may be pruned, from 0; null: all")
    two_sided: bool = Field(
        False, description="refuse also widths at which the entropy falls by more than entropy_increase"
    )
    total_increase: Positive | None = Field(None, description="entropy all blocks together may add, in nats; null: any")
    attention: Attention = Field(
        "none",
        description="what of attention may be removed beside neurons. heads: whole heads, by the same loss, under one "
        "budget; needs criterion reconstruction, allocation global and a target of params or flops. auto: heads, where "
        "these settings and the model allow it",
    )
    compensation: Compensation = Field(
        "none",
        description="refit of out-projections, so that kept neurons stand in for removed ones. mean, ridge: each MLP "
        "by itself; sequential: block after block on what the pruned ones hand on, attention's too",
    )
    compensate_in_search: bool = Field(True, description="measure each width with its compensation")
    damping: NonNegative = Field(
        1e-3, description="of ridge and sequential: added to the activations' covariance, as a share of its mean"
    )
    refit_steps: Annotated[int, Field(ge=0, le=100_000)] = Field(
        150,
        description="of sequential: steps of gradient descent on each block's MLP, whose in-projections adapt too",
    )
    refit_views: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="of sequential: views of each calibration image: itself, and random crops of it"
    )
    recover_steps: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="steps of gradient descent on the pruned tower, without labels, to the dense one's features"
    )
    recover_images: Count | None = Field(None, description="calibration images that these steps see; null: all")
    num_calibration_samples: Count = Field(
        2048, description="images of the training split that compensation and recovery see"
    )

    @property
    def multiple(self) -> int:
        """`width_multiple`, or what it is where it is left open, in towers that are not narrow."""
        if self.width_multiple is not None:
            return self.width_multiple
        published = self.allocation == "search" and self.search in PUBLISHED and not self.target.asked
        return 1 if published or self.widths is not None else ALIGNED

    def multiple_in(self, width: int) -> int:
        """The same, in a tower whose widest block has `width` neurons."""
        own = self.multiple
        while self.width_multiple is None and own > 1 and width < FINEST * own:
            own //= 2
        return own

    def decisive(self, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
        """As of all settings; an open `width_multiple` by what it is, and nothing of a refit or a recovery not made."""
        own = {**super().decisive(leave_out), "width_multiple": self.multiple}
        unused = () if self.compensation == "sequential" else OF_SEQUENTIAL
        unused = unused if self.recover_steps else (*unused, *OF_RECOVERY)
        unused = unused if self.attention != "none" else (*unused, "attention")
        return {key: value for key, value in own.items() if key not in unused}

    def check_calibration(self, key: str, batch_size: int) -> None:
        """Raises ValueError where the images that compensation sees, or that were asked for, fill no batch."""
        asked = self.compensation != "none" or self.recover_steps or "num_calibration_samples" in self.model_fields_set
        counts = {"num_calibration_samples": self.num_calibration_samples} if asked else {}
        counts |= {} if self.recover_images is None else {"recover_images": self.recover_images}
        for name, count in counts.items():
            if count < batch_size:
                raise ValueError(f"{key}.{name} {count} is less than one batch of batch_size {batch_size}")

    @model_validator(mode="after")
    def _one_way_to_widths(self) -> "SearchSettings":
        if self.widths is not None and self.target.asked:
            raise ValueError("widths and target: give one of them")
        return self

    @model_validator(mode="after")
    def _heads_are_allocated(self) -> "SearchSettings":
        if self.attention == "heads" and (need := self.heads_need()):
            raise ValueError(f"attention: heads needs {need}")
        return self

    def heads_need(self, criterion: str = "reconstruction") -> str | None:
        """What these settings, with a criterion, would have to say so that heads can be removed; None: they say it."""
        if criterion != "reconstruction":
            return f"criterion: reconstruction, not {criterion}"
        if self.allocation != "global":
            return f"allocation: global, not {self.allocation}"
        if self.target.asked and self.target.asked[0] not in ("params", "flops"):
            return "a target of params or flops"
        return None

    def attention_by(self, criterion: str) -> Attention:
        """`attention`; none where it is auto and other settings leave no heads to be removed."""
        return "none" if self.attention == "auto" and self.heads_need(criterion) else self.attention

    @model_validator(mode="after")
    def _search_alone_has(self) -> "SearchSettings":
        for key in ("widths", "blocks", "total_increase", "two_sided"):
            if self.allocation != "search" and getattr(self, key):
                raise ValueError(f"{key}: allocation: {self.allocation} does not search; leave it out")
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
        """As of `SearchSettings.attention_by`."""
        return self.prune.attention_by(self.score.criterion)

    def check_has_size(self) -> None:
        """Raises UserError where the widths are to meet a size that nobody says."""
        if self.prune.allocation != "search" and not self.prune.target.asked:
            text = f"missing; prune.allocation: {self.prune.allocation} needs a size to meet, here or by --sweep"
            raise UserError("prune.target", text)

    @property
    def dense(self) -> ModelSettings:
        """The dense model."""
        return self.model

    def of_target(self, key: str, value: float) -> Self:
        """The same settings with this one of `prune.target`."""
        own = self.prune.model_copy(update={"target": TargetSettings.model_validate({key: value})})
        return self.model_copy(update={"prune": own})

    def with_frame(self, frame: Frame | None) -> Self:
        """The same settings with `model.frame` filled in where it was left open."""
        return self.model_copy(update={"model": self.model.model_copy(update={"frame": self.model.frame or frame})})
