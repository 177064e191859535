"""Typed, frozen settings of every script: names, types, bounds, defaults, and what each means."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Frame = Literal["open_clip", "eva_clip", "dinov2", "timm", "hf"]
Precision = Literal["fp32", "bf16"]
Parallel = Literal["ddp", "fsdp"]
DatasetName = Literal["coco", "imagenet1k", "imagefolder", "digit_scenes", "webdataset"]
Criterion = Literal["entropy", "cross_entropy", "kl", "reconstruction", "variance", "magnitude", "diversity", "random"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
Target = Annotated[float, Field(gt=0, lt=1)]
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
    root: str = Field(description="folder of the dataset; for webdataset also a pattern, train-{000..127}.tar")
    batch_size: Annotated[int, Field(ge=2)] = Field(description="images in one batch, over all processes")
    shuffle: bool = Field(True, description="one fixed shuffle of the images, by seed")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the shuffle and the augmentation")
    num_workers: Annotated[int, Field(ge=0)] = Field(4, description="loader workers per process")
    strict: bool = Field(False, description="stop at a broken image instead of skipping it")
    max_broken: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="a run ends at more than this share of broken images"
    )


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
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the criteria 'random', 'kl' and 'reconstruction'")
    micro_batch: Count | None = Field(
        None, description="images in one backward pass of a process, for less memory and one more forward; null: all"
    )
    save_every: Count = Field(50, description="batches after which a killed run can go on")

    @model_validator(mode="after")
    def _classes_are_there(self) -> "ScoreSettings":
        if self.criterion == "cross_entropy" and self.classes is None:
            raise ValueError("classes: missing; criterion cross_entropy needs the classes' names, a list")
        if self.template is not None and "{c}" not in self.template:
            raise ValueError(f"template: {self.template!r}: has no {{c}} where the class is to stand")
        return self


class TargetSettings(Settings):
    params: Target | None = Field(None, description="parameters of the pruned tower, of the dense one's")
    flops: Target | None = Field(None, description="FLOPs of the pruned tower, of the dense one's")
    throughput: Annotated[float, Field(gt=1)] | None = Field(None, description="images a second, of the dense tower's")

    @property
    def asked(self) -> tuple[str, float] | None:
        """What is to be met, and how much of it."""
        return next(((key, value) for key, value in self.model_dump().items() if value is not None), None)

    @model_validator(mode="after")
    def _one(self) -> "TargetSettings":
        given = [key for key, value in self.model_dump().items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: one target at a time")
        return self


class SearchSettings(Settings):
    allocation: Literal["search", "uniform", "global"] = Field(
        "search",
        description="what gives each block its width. uniform: one share for all; global: one threshold of the scores",
    )
    entropy_increase: Share = Field(1.0e-2, description="entropy a block may add, in nats")
    search_steps: Annotated[int, Field(ge=1, le=32)] = Field(6, description="probes per block")
    widths: tuple[Count, ...] | None = Field(None, description="one width a block; skips the search")
    search: Literal["plain", "exact", "racing"] = Field(
        "exact", description="exact: blocks before the one searched are not run again; racing: also few batches a probe"
    )
    preset: Literal["strict", "fast"] = Field(
        "strict", description="of racing. strict: the exact search's widths, or the next; fast: the cheapest"
    )
    confidence: Positive | None = Field(
        None, description="of racing: standard errors between a probe and the limit; null: the preset's"
    )
    tolerance: Share | None = Field(
        None, description="of racing: share of entropy_increase in which either answer is right; null: the preset's"
    )
    store: Literal["device", "host", "disk"] = Field("host", description="where images and blocks' inputs are kept")
    store_every: Count = Field(4, description="keep the inputs of every n-th block, recompute the others")
    target: TargetSettings = TargetSettings()
    width_multiple: Count = Field(1, description="widths are multiples of it, as hardware likes them")
    min_width: Count = Field(1, description="no width is smaller")
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="numbers of the blocks that may be pruned, from 0; null: all"
    )
    two_sided: bool = Field(False, description="refuse also a probe whose entropy falls by more than entropy_increase")
    total_increase: Positive | None = Field(None, description="entropy all blocks together may add, in nats; null: any")
    compensation: Literal["none", "mean", "ridge"] = Field(
        "none", description="refit of each out-projection, so that kept neurons stand in for removed ones"
    )
    compensate_in_search: bool = Field(True, description="judge each probe with its compensation")
    damping: Share = Field(1e-3, description="of ridge: added to the activations' covariance, as a share of its mean")
    num_calibration_samples: Count = Field(2048, description="images of the training split that compensation sees")

    @property
    def inputs_every(self) -> int | None:
        """Of every how many blocks a search keeps the inputs; None: of none."""
        searches = self.search != "plain" and self.widths is None and self.allocation == "search"
        return self.store_every if searches else None

    @model_validator(mode="after")
    def _one_way_to_widths(self) -> "SearchSettings":
        if self.widths is not None and self.target.asked:
            raise ValueError("widths and target: give one of them")
        return self

    @model_validator(mode="after")
    def _search_alone_has(self) -> "SearchSettings":
        for key in ("widths", "blocks", "total_increase", "two_sided"):
            if self.allocation != "search" and getattr(self, key):
                raise ValueError(f"{key}: allocation: {self.allocation} does not search; leave it out")
        return self


class OutputSettings(Settings):
    dir: str = Field(description="folder of the run")


class PruneConfig(Settings):
    """Settings of main_score.py and main_prune.py."""

    model: ModelSettings
    data: PruneDataSettings
    score: ScoreSettings = ScoreSettings()
    prune: SearchSettings = SearchSettings()
    output: OutputSettings

    @model_validator(mode="after")
    def _allocation_has_a_size(self) -> "PruneConfig":
        if self.prune.allocation != "search" and not self.prune.target.asked:
            raise ValueError(f"prune.target: missing; prune.allocation: {self.prune.allocation} needs a size to meet")
        return self

    def with_frame(self, frame: Frame | None) -> "PruneConfig":
        """The same settings with `model.frame` filled in where it was left open."""
        return self.model_copy(update={"model": self.model.model_copy(update={"frame": self.model.frame or frame})})


class OptimSettings(Settings):
    base_lr: Annotated[float, Field(gt=0, le=1)] = Field(description="learning rate at a global batch of 256")
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
    parallel: Parallel = Field("ddp", description="ddp: a replica on every process; fsdp: shards of one")
    accumulate: Count = Field(1, description="micro-batches a step, one after another; the batch stays the same")
    activation_checkpointing: bool | Count = Field(
        False, description="recompute blocks in the backward pass: true, false or how many"
    )
    compile: bool = Field(False, description="torch.compile of every block")
    step_in_backward: bool = Field(
        False, description="update each weight as its gradient is there, and free it; one process, pure_bf16"
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> "OptimSettings":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}")
        return self

    @model_validator(mode="after")
    def _steps_with_whole_gradients(self) -> "OptimSettings":
        if self.step_in_backward and self.accumulate > 1:
            raise ValueError("step_in_backward would step after every micro-batch: accumulate must be 1")
        if self.step_in_backward and self.precision != "pure_bf16":
            raise ValueError("step_in_backward is a part of the optimizer of precision pure_bf16 alone")
        return self
