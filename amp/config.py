"""Typed, frozen settings of every script: names, types, bounds, defaults, and what each means."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Frame = Literal["open_clip", "eva_clip", "dinov2", "timm", "hf"]
Precision = Literal["fp32", "bf16"]
DatasetName = Literal["coco", "imagenet1k", "imagefolder", "digit_scenes"]
Criterion = Literal["entropy", "cross_entropy", "kl", "variance", "magnitude", "diversity", "random"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
MODEL_NAME = "the library's model name, an open_clip model JSON, or for hf a folder or hub id"
MODEL_WEIGHTS = "weights: a tag of the library or a file; null: random, for hf those of the name"


class Settings(BaseModel):
    """Base of all settings: frozen, typed strictly, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TransformSettings(Settings):
    input_size: Count | None = Field(None, description="side of the square input in pixels")
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="centre crop / resized side")
    interpolation: Literal["bicubic", "bilinear"] | None = Field(None, description="resize filter")
    mean: tuple[float, float, float] | None = Field(None, description="per-channel mean")
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="per-channel deviation")


class ModelSettings(Settings):
    frame: Frame | None = Field(None, description="library the model comes from; also --frame")
    name: str = Field(description=MODEL_NAME)
    pretrained: str | None = Field(None, description=MODEL_WEIGHTS)
    precision: Precision = Field("fp32", description="precision of the frozen weights")
    kwargs: dict[str, Any] = Field({}, description="passed to the library's factory (img_size, ...)")
    transform: TransformSettings = TransformSettings()

    @property
    def weights(self) -> str | None:
        """Where the weights come from; a folder as a name holds its own."""
        return self.pretrained or (self.name if Path(self.name).is_dir() else None)


class DataSettings(Settings):
    name: DatasetName = Field(description="layout of the images on disk")
    root: str = Field(description="folder of the dataset")
    batch_size: Annotated[int, Field(ge=2)] = Field(description="images in one batch, over all processes")
    shuffle: bool = Field(True, description="one fixed shuffle of the images, by seed")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the shuffle and the augmentation")
    num_workers: Annotated[int, Field(ge=0)] = Field(4, description="loader workers per process")
    strict: bool = Field(False, description="stop at a broken image instead of skipping it")


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


class ScoreSettings(Settings):
    criterion: Criterion = Field("entropy", description="what ranks the neurons")
    inverse_temperature: Positive = Field(15.0, description="factor on the similarities in the entropy")
    absolute: bool = Field(True, description="absolute value per image before the mean")
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        None, description="class names for 'cross_entropy', in the order of their sorted folders"
    )
    template: str | None = Field(None, description="prompt around a class, null: 'a photo of a {c}'")
    labels: Literal["folders"] | None = Field(
        None, description="classes of the images for 'cross_entropy'; null: as the network predicts"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the criteria 'random' and 'kl'")

    @model_validator(mode="after")
    def _classes_are_there(self) -> "ScoreSettings":
        if self.criterion == "cross_entropy" and self.classes is None:
            raise ValueError("classes: missing; criterion cross_entropy needs the classes' names, a list")
        if self.template is not None and "{c}" not in self.template:
            raise ValueError(f"template: {self.template!r}: has no {{c}} where the class is to stand")
        return self


class SearchSettings(Settings):
    entropy_increase: Share = Field(1.0e-2, description="entropy a block may add, in nats")
    search_steps: Annotated[int, Field(ge=1, le=32)] = Field(6, description="probes per block")
    widths: tuple[Count, ...] | None = Field(None, description="one width a block; skips the search")


class OutputSettings(Settings):
    dir: str = Field(description="folder of the run")


class PruneConfig(Settings):
    """Settings of main_score.py and main_prune.py."""

    model: ModelSettings
    data: PruneDataSettings
    score: ScoreSettings = ScoreSettings()
    prune: SearchSettings = SearchSettings()
    output: OutputSettings

    def with_frame(self, frame: Frame | None) -> "PruneConfig":
        """The same settings with `model.frame` filled in where it was left open."""
        return self.model_copy(update={"model": self.model.model_copy(update={"frame": self.model.frame or frame})})


class TeacherSettings(Settings):
    frame: Frame | None = Field(None, description="library the model comes from; also --frame")
    name: str = Field(description=MODEL_NAME)
    pretrained: str | None = Field(None, description=MODEL_WEIGHTS)
    kwargs: dict[str, Any] = Field({}, description="passed to the library's factory (img_size, ...)")

    def as_model(self, precision: Precision) -> ModelSettings:
        """The dense model to build, frozen, in `precision`."""
        own = self.model_dump()
        return ModelSettings(**own, precision=precision)


class StudentSettings(Settings):
    pretrained: str = Field(description="a pruned/ folder, or a published vision checkpoint")


class DistillDataSettings(DataSettings):
    augment: Literal["clip", "dinov2", "none"] = Field("clip", description="augmentation recipe")


class OptimSettings(Settings):
    base_lr: Positive = Field(description="learning rate at a global batch of 256")
    min_lr: Share = Field(description="learning rate at the end, not scaled with the batch")
    epochs: Count = Field(description="passes over the images")
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(1, description="epochs of linear warm-up from 0")
    weight_decay: Share = Field(0.04, description="weight decay at the start")
    weight_decay_end: Share = Field(0.2, description="weight decay at the end (cosine)")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="AdamW betas"
    )
    precision: Literal["fp32", "bf16", "pure_bf16"] = Field(
        "fp32", description="bf16: autocast; pure_bf16: weights and moments too, Kahan-summed"
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> "OptimSettings":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}")
        return self


class DistillOutputSettings(OutputSettings):
    save_every: Count = Field(500, description="steps between resumable checkpoints")
    log_every: Count = Field(10, description="steps between TensorBoard points")


class DistillConfig(Settings):
    """Settings of distill.py."""

    teacher: TeacherSettings
    student: StudentSettings
    data: DistillDataSettings
    optim: OptimSettings
    output: DistillOutputSettings

    def with_frame(self, frame: Frame) -> "DistillConfig":
        """The same settings with `teacher.frame` in place."""
        return self.model_copy(update={"teacher": self.teacher.model_copy(update={"frame": frame})})


class CompareRowSettings(Settings):
    criterion: Criterion = Field("entropy", description="what ranks the neurons")
    allocation: Literal["search", "uniform", "global"] = Field("search", description="what gives each block its width")
    compensation: Literal["none", "mean", "ridge"] = Field("none", description="refit of the out-projections")
    compensate_in_search: bool = Field(False, description="whether each probe is compensated too")

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
