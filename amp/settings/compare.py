"""Settings of eval/eval_compare.py."""

from typing import Any, Literal

from pydantic import Field, model_validator

from amp.settings.base import ASIDE, Count, Fraction, PathOrName, Seed, Settings, Some
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
        if self.attention == "heads" and (need := self.heads_need(self.criterion)):
            raise ValueError(f"attention: heads needs {need}")
        return self

    @property
    def multiple(self) -> int:
        """As where there is a target."""
        return self.width_multiple or ALIGNED


class PeerSettings(Settings):
    method: PathOrName = Field(description="what prunes the tower: a file of eval/studies/methods, by its name")
    importance: Literal["taylor", "magnitude"] = Field(
        "taylor", description="of a library's own choices, what ranks; taylor: of the entropy that AMP's scores are of"
    )
    groups: Literal["local", "global", "isomorphic"] = Field(
        "global", description="of torch_pruning: what is ranked together"
    )
    scope: Literal["mlp", "whole"] = Field(
        "mlp", description="what a library may prune: the MLPs' neurons alone, or all that it prunes of such a network"
    )


class CompareTestSettings(Settings):
    root: PathOrName = Field(description="class folders of the images that all networks are tested on", **ASIDE)
    text_features: PathOrName | None = Field(
        None,
        description="safetensors file with `classifier` (D, C): an image's class is the column of largest cosine",
        **ASIDE,
    )
    text_classes: PathOrName | None = Field(
        None,
        description="file with the class folder of each column, one a line; null: the sorted folders of `root`",
        **ASIDE,
    )
    neighbours: PathOrName | None = Field(
        None,
        description="class folders of labelled images, whose 10 nearest vote; null: the model's own text tower",
        **ASIDE,
    )

    @model_validator(mode="after")
    def _one_way(self) -> "CompareTestSettings":
        if self.text_features and self.neighbours:
            raise ValueError("text_features and neighbours: give one of them")
        if self.text_classes and not self.text_features:
            raise ValueError("text_classes: are those of text_features, which is missing")
        return self


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
    test: CompareTestSettings | None = Field(
        None, description="what towers are tested on; null: the scenes and captions of data.name: digit_scenes"
    )
    rows: dict[str, CompareRowSettings] = Field(
        {}, description="what is compared: a name, its criterion, and any of prune.* but widths and target"
    )
    peers: dict[str, PeerSettings] = Field(
        {}, description="other libraries and other methods, beside the rows: a name, and what prunes"
    )
    distil: CompareDistilSettings | None = Field(None, description="of every row in the same way; null: none")
    output: OutputSettings = Field(**ASIDE)

    @property
    def lines(self) -> dict[str, CompareRowSettings | PeerSettings]:
        """Rows and peers by their names, in the table's order."""
        return {**self.rows, **self.peers}

    def decisive(self, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
        """As of all settings; without a test of one's own, as before there was one."""
        return super().decisive(leave_out if self.test is not None else (*leave_out, "test"))

    @model_validator(mode="after")
    def _rows_are_there(self) -> "CompareConfig":
        if not self.lines:
            raise ValueError("rows: empty, and so is peers; name at least one")
        if both := self.rows.keys() & self.peers.keys():
            raise ValueError(f"peers.{min(both)}: is a name in rows too")
        return self

    @model_validator(mode="after")
    def _calibration_fills_a_batch(self) -> "CompareConfig":
        for name, row in self.rows.items():
            row.check_calibration(f"rows.{name}", self.data.batch_size)
        return self

    @property
    def dense(self) -> ModelSettings:
        """The dense model."""
        return self.model
