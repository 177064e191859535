"""Settings of eval/eval_compare.py."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from amp.config import (
    Count,
    Criterion,
    ModelSettings,
    OptimSettings,
    OutputSettings,
    PruneDataSettings,
    ScoreSettings,
    Settings,
    Share,
)


class CompareRowSettings(Settings):
    criterion: Criterion = Field("entropy", description="what ranks the neurons")
    allocation: Literal["search", "uniform", "global"] = Field("search", description="what gives each block its width")
    compensation: Literal["none", "mean", "ridge"] = Field("none", description="refit of the out-projections")
    compensate_in_search: bool = Field(False, description="whether each probe is compensated too")
    two_sided: bool = Field(False, description="whether the search refuses an entropy that falls")

    @model_validator(mode="after")
    def _search_has_what_it_compensates(self) -> "CompareRowSettings":
        if self.compensate_in_search and (self.allocation != "search" or self.compensation == "none"):
            raise ValueError("compensate_in_search: needs allocation: search, and compensation: mean or ridge")
        return self


class CompareSettings(Settings):
    sizes: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.8, 0.6, 0.5, 0.4), description="shares of the tower's parameters to compare at"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), description="each chooses other images, and other random neurons"
    )
    search_steps: Annotated[int, Field(ge=1, le=32)] = Field(6, description="probes per block")
    damping: Share = Field(1.0e-3, description="of ridge, as a share of the mean variance")


class CompareDistilSettings(Settings):
    num_samples: Count = Field(description="training images to distil on")
    batch_size: Count = Field(description="images in one step")
    measure_every: Count = Field(description="steps between two measurements")
    optim: OptimSettings


class CompareConfig(Settings):
    """Settings of eval/eval_compare.py."""

    model: ModelSettings
    data: PruneDataSettings
    score: ScoreSettings = ScoreSettings()
    compare: CompareSettings = CompareSettings()
    rows: dict[str, CompareRowSettings] = Field(
        min_length=1, description="what is compared: a name, and its criterion, allocation, compensation"
    )
    distil: CompareDistilSettings
    output: OutputSettings
