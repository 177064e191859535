"""Settings of distill.py."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from amp.settings.base import (
    ASIDE,
    WHERE_SET,
    Count,
    CountOrZero,
    ModelArguments,
    NonNegative,
    PathOrName,
    Precision,
    Settings,
)
from amp.settings.data import DataSettings
from amp.settings.model import MODEL_NAME, MODEL_WEIGHTS, Frame, ModelSettings, TransformSettings
from amp.settings.run import OutputSettings, RunConfig

Parallel = Literal["ddp", "fsdp"]

# The settings for a pruned and refitted model if only a number of steps is given.
RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    "data": {"batch_size": 64},
    "optim": {"base_lr": 2e-4, "min_lr": 1e-6, "epochs": 1},
}


class OptimSettings(Settings):
    base_lr: Annotated[float, Field(gt=0, le=1)] = Field(
        description="peak learning rate for a global batch of 256; it scales with the batch"
    )
    min_lr: NonNegative = Field(description="learning rate at the end; it does not scale with the batch")
    epochs: Count = Field(description="passes over the images")
    warmup_epochs: CountOrZero = Field(1, description="epochs of linear warm-up from 0")
    warmup_steps: CountOrZero | None = Field(
        None, description="warm-up in steps instead of epochs; null: use warmup_epochs"
    )
    weight_decay: NonNegative = Field(0.04, description="weight decay at the start")
    weight_decay_end: NonNegative = Field(0.2, description="weight decay at the end, reached on a cosine")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="betas of AdamW"
    )
    precision: Literal["fp32", "bf16", "pure_bf16"] = Field(
        "fp32",
        description="bf16: autocast; pure_bf16: weights and optimizer moments are bf16 too, with Kahan summation",
    )
    parallel: Parallel = Field(
        "ddp",
        description="ddp: every process holds the whole model; fsdp: the model is sharded over the processes",
        **ASIDE,
    )
    accumulate: Count = Field(
        1, description="micro-batches into which each batch is split to save memory; the result stays the same", **ASIDE
    )
    activation_checkpointing: bool | Count = Field(
        False,
        description="recompute blocks in the backward pass to save memory: true, false, or the number of blocks",
        **ASIDE,
    )
    compile: bool = Field(False, description="compile every block with torch.compile", **ASIDE)
    step_in_backward: bool = Field(
        False,
        description="update each weight as soon as its gradient is there, to save memory; needs one process and "
        "pure_bf16",
        **ASIDE,
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> "OptimSettings":
        if self.warmup_steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}")
        return self

    @model_validator(mode="after")
    def _steps_with_whole_gradients(self) -> "OptimSettings":
        if self.step_in_backward and self.accumulate > 1:
            raise ValueError("step_in_backward would step after every micro-batch: accumulate must be 1")
        if self.step_in_backward and self.precision != "pure_bf16":
            raise ValueError("step_in_backward works only with precision pure_bf16")
        return self


class TeacherSettings(Settings):
    frame: Frame | None = Field(None, description="library that the model comes from; also --frame")
    name: PathOrName = Field(description=MODEL_NAME)
    pretrained: PathOrName | None = Field(None, description=MODEL_WEIGHTS)
    kwargs: ModelArguments = Field({}, description="arguments for the library's factory function (img_size, ...)")
    transform: TransformSettings = Field(TransformSettings(), **WHERE_SET)

    def as_model(self, precision: Precision) -> ModelSettings:
        """The dense model to build, frozen, in `precision`."""
        own = self.model_dump()
        return ModelSettings(**own, precision=precision)


class StudentSettings(Settings):
    pretrained: PathOrName = Field(description="a pruned/ folder, or a published checkpoint of a pruned vision tower")


class DistillDataSettings(DataSettings):
    augment: Literal["clip", "dinov2", "none"] = Field("clip", description="augmentation of the images")


class DistillOutputSettings(OutputSettings):
    save_every: Count = Field(500, description="steps between checkpoints from which training can resume")
    keep: Count = Field(2, description="number of latest checkpoints to keep")
    log_every: Count = Field(10, description="steps between entries in the TensorBoard log")
    eval_every: CountOrZero = Field(1000, description="steps between measurements on held-out images; 0: never")
    eval_images: Count = Field(
        2048, description="number of held-out images to measure on: the first ones in their order"
    )


class EvalSettings(Settings):
    metric: Literal["loss", "knn", "zeroshot"] = Field(
        "loss",
        description="how to select the best checkpoint: loss on held-out images, k-NN accuracy or zero-shot top-1",
    )
    root: PathOrName | None = Field(
        None,
        description="folder of the images for knn or zeroshot; for knn with class folders in train/ and val/; null: "
        "data.root",
    )
    name: PathOrName | None = Field(
        None, description="for zeroshot: a classification dataset of clip_benchmark, or digit_scenes"
    )
    num_samples: Count = Field(2048, description="number of images to measure on, spread evenly over the dataset")
    num_train_samples: Count = Field(
        8192, description="for knn: number of labelled images that may vote, spread evenly over train/"
    )
    k: Count = Field(20, description="for knn: number of nearest neighbours that vote")
    batch_size: Count = Field(64, description="images in one batch of one process")

    @model_validator(mode="after")
    def _has_what_its_metric_needs(self) -> "EvalSettings":
        if self.metric == "zeroshot" and self.name is None:
            raise ValueError("name: missing; metric zeroshot needs the name of a dataset, for example digit_scenes")
        if self.metric == "knn" and self.num_train_samples < self.k:
            raise ValueError(f"num_train_samples {self.num_train_samples} is less than k {self.k}")
        return self


class DistillConfig(RunConfig):
    """Settings of distill.py."""

    teacher: TeacherSettings
    student: StudentSettings
    data: DistillDataSettings
    optim: OptimSettings
    eval: EvalSettings = Field(EvalSettings(), **ASIDE)  # What is measured on the way.
    output: DistillOutputSettings = Field(**ASIDE)

    @property
    def dense(self) -> ModelSettings:
        """The teacher, in fp32."""
        return self.teacher.as_model("fp32")

    def with_frame(self, frame: Frame | None) -> Self:
        """The same settings with `teacher.frame` filled in if it was None."""
        own = self.teacher.model_copy(update={"frame": self.teacher.frame or frame})
        return self.model_copy(update={"teacher": own})

    @model_validator(mode="after")
    def _rate_falls(self) -> "DistillConfig":
        peak = self.optim.base_lr * self.data.batch_size / 256
        if self.optim.min_lr > peak:
            raise ValueError(
                f"optim.min_lr {self.optim.min_lr:g} is above the peak rate {peak:g} = base_lr * batch_size / 256"
            )
        return self

    @model_validator(mode="after")
    def _is_measured(self) -> "DistillConfig":
        if self.eval.metric != "loss" and self.output.eval_every == 0:
            raise ValueError(f"output.eval_every 0: eval.metric {self.eval.metric} would never be measured")
        return self
