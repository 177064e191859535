"""Settings of eval/eval_compare.py."""

from pydantic import Field, model_validator

from amp.settings.base import ASIDE, Count, Fraction, Seed, Settings, Some
from amp.settings.distill import OptimSettings
from amp.settings.model import ModelSettings
from amp.settings.prune import ALIGNED, PruneDataSettings, SearchSettings
from amp.settings.run import OutputSettings, RunConfig
from amp.settings.score import Criterion, ScoreSettings


class CompareRowSettings(SearchSettings):
    criterion: Criterion = Field("entropy", description="what ranks the neurons")

    @model_validator(mode="after")
    def _sizes_decide(self) -> "CompareRowSettings":
        if self.widths is not None or self.target.asked:
            raise ValueError("widths and target: compare.sizes says how large the towers are")
        return self

    @property
    def multiple(self) -> int:
        """As where there is a target."""
        return self.width_multiple or ALIGNED


class CompareSettings(Settings):
    sizes: Some[Fraction] = Field((0.8, 0.6, 0.5, 0.4), description="shares of the tower's parameters to compare at")
    seeds: Some[Seed] = Field((0, 1, 2), description="each chooses other images, and other random neurons")


class CompareDistilSettings(Settings):
    num_samples: Count = Field(description="training images to distil on")
    batch_size: Count = Field(description="images in one step")
    measure_every: Count = Field(description="steps between two measurements")
    optim: OptimSettings


class CompareConfig(RunConfig):
    """Settings of eval/eval_compare.py."""

    model: ModelSettings
    data: PruneDataSettings
    score: ScoreSettings = ScoreSettings()
    compare: CompareSettings = CompareSettings()
    rows: dict[str, CompareRowSettings] = Field(
        min_length=1, description="what is compared: a name, its criterion, and any of prune.* but widths and target"
    )
    distil: CompareDistilSettings
    output: OutputSettings = Field(**ASIDE)

    @model_validator(mode="after")
    def _calibration_fills_a_batch(self) -> "CompareConfig":
        for name, row in self.rows.items():
            row.check_calibration(f"rows.{name}", self.data.batch_size)
        return self

    @property
    def dense(self) -> ModelSettings:
        """The dense model."""
        return self.model
