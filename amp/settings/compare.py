"""Settings of eval/eval_compare.py."""

from typing import Literal

from pydantic import Field, model_validator

from amp.settings.base import ASIDE, WHERE_SET, Count, Fraction, PathOrName, Seed, Settings, Some
from amp.settings.distill import OptimSettings
from amp.settings.model import ModelSettings
from amp.settings.prune import ALIGNED, PruneDataSettings, SearchSettings
from amp.settings.run import OutputSettings, RunConfig
from amp.settings.score import Criterion, ScoreSettings


class CompareRowSettings(SearchSettings):
    criterion: Criterion = Field("entropy", description="rule that ranks the neurons")

    @model_validator(mode="after")
    def _sizes_decide(self) -> "CompareRowSettings":
        if self.widths is not None or self.target.asked:
            raise ValueError("widths and target: not allowed here, compare.sizes sets the sizes")
        if self.attention == "heads" and (need := self.heads_need(self.criterion)):
            raise ValueError(f"attention: heads needs {need}")
        return self

    @property
    def multiple(self) -> int:
        """The multiple of widths for a target size."""
        return self.width_multiple or ALIGNED


class PeerSettings(Settings):
    method: PathOrName = Field(description="method that prunes the tower: the name of a file in eval/studies/methods")
    importance: Literal["taylor", "magnitude"] = Field(
        "taylor",
        description="for libraries: ranking of the neurons; taylor: Taylor scores of the same entropy as AMP's",
    )
    groups: Literal["local", "global", "isomorphic"] = Field(
        "global", description="for torch_pruning: what is ranked together"
    )
    scope: Literal["mlp", "whole"] = Field(
        "mlp",
        description="what a library may prune. mlp: only neurons of MLPs; whole: everything that it can",
    )


class CompareTestSettings(Settings):
    root: PathOrName = Field(description="folder with class folders of test images, the same for all networks", **ASIDE)
    text_features: PathOrName | None = Field(
        None,
        description="safetensors file with `classifier` (D, C); an image gets the column with the largest cosine",
        **ASIDE,
    )
    text_classes: PathOrName | None = Field(
        None,
        description="text file with the class folder of each column, one per line; null: the sorted folders of `root`",
        **ASIDE,
    )
    neighbours: PathOrName | None = Field(
        None,
        description="class folders of labelled images, of which the 10 nearest vote; null: the model's own text tower",
        **ASIDE,
    )

    @model_validator(mode="after")
    def _one_way(self) -> "CompareTestSettings":
        if self.text_features and self.neighbours:
            raise ValueError("text_features and neighbours: give only one of them")
        if self.text_classes and not self.text_features:
            raise ValueError("text_classes: needs text_features, which is missing")
        return self


class CompareSettings(Settings):
    sizes: Some[Fraction] = Field(
        (0.8, 0.6, 0.5, 0.4), description="sizes to compare, as shares of the tower's parameters"
    )
    seeds: Some[Seed] = Field((0, 1, 2), description="random seeds; each selects other images and other random neurons")


class CompareDistilSettings(Settings):
    num_samples: Count = Field(description="number of training images for distillation")
    batch_size: Count = Field(description="images in one training step")
    measure_every: Count = Field(description="training steps between two measurements")
    optim: OptimSettings


class CompareConfig(RunConfig):
    """Settings of eval/eval_compare.py."""

    model: ModelSettings
    data: PruneDataSettings
    score: ScoreSettings = ScoreSettings()
    compare: CompareSettings = CompareSettings()
    test: CompareTestSettings | None = Field(
        None, description="test of the towers; null: the scenes and captions of data.name: digit_scenes", **WHERE_SET
    )
    rows: dict[str, CompareRowSettings] = Field(
        {}, description="rows to compare: for each name, a criterion and any settings of prune except widths and target"
    )
    peers: dict[str, PeerSettings] = Field(
        {}, description="other libraries and methods to compare: for each name, the method that prunes"
    )
    distil: CompareDistilSettings | None = Field(None, description="distillation, the same for every row; null: none")
    output: OutputSettings = Field(**ASIDE)

    @property
    def lines(self) -> dict[str, CompareRowSettings | PeerSettings]:
        """Rows and peers by their names, in the table's order."""
        return {**self.rows, **self.peers}

    @model_validator(mode="after")
    def _rows_are_there(self) -> "CompareConfig":
        if not self.lines:
            raise ValueError("rows: empty, like peers; add at least one row")
        if both := self.rows.keys() & self.peers.keys():
            raise ValueError(f"peers.{min(both)}: is also a name in rows")
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
