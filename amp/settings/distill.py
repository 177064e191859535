"""Settings of distill.py."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from amp.settings.base import Count, OutputSettings, Precision, Settings
from amp.settings.data import DataSettings
from amp.settings.model import MODEL_NAME, MODEL_WEIGHTS, Frame, ModelSettings
from amp.settings.optim import OptimSettings


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


class DistillOutputSettings(OutputSettings):
    save_every: Count = Field(500, description="steps between resumable checkpoints")
    keep: Count = Field(2, description="resumable checkpoints that stay, the last ones")
    log_every: Count = Field(10, description="steps between TensorBoard points")
    eval_every: Annotated[int, Field(ge=0)] = Field(
        1000, description="steps between measurements on held-out images; 0: never"
    )
    eval_images: Count = Field(2048, description="held-out images, the first ones of their order")


class EvalSettings(Settings):
    metric: Literal["loss", "knn", "zeroshot"] = Field(
        "loss", description="what tells the best checkpoint: loss on held-out images, k-NN accuracy, zero-shot top-1"
    )
    root: str | None = Field(
        None, description="folder of its images: for knn with train/ and val/ of class folders; null: data.root"
    )
    name: str | None = Field(
        None, description="dataset of zeroshot: one of clip_benchmark's with single images, or digit_scenes"
    )
    num_samples: Count = Field(2048, description="images measured, spread evenly over the dataset")
    num_train_samples: Count = Field(8192, description="of knn: images that vote, spread evenly over train/")
    k: Count = Field(20, description="of knn: neighbours that vote")
    batch_size: Count = Field(64, description="images in one batch on one process")

    @model_validator(mode="after")
    def _has_what_its_metric_needs(self) -> "EvalSettings":
        if self.metric == "zeroshot" and self.name is None:
            raise ValueError("name: missing; metric zeroshot needs the name of a dataset, digit_scenes for example")
        if self.metric == "knn" and self.num_train_samples < self.k:
            raise ValueError(f"num_train_samples {self.num_train_samples} is less than k {self.k}")
        return self


class DistillConfig(Settings):
    """Settings of distill.py."""

    teacher: TeacherSettings
    student: StudentSettings
    data: DistillDataSettings
    optim: OptimSettings
    eval: EvalSettings = EvalSettings()
    output: DistillOutputSettings

    def with_frame(self, frame: Frame) -> "DistillConfig":
        """The same settings with `teacher.frame` in place."""
        return self.model_copy(update={"teacher": self.teacher.model_copy(update={"frame": frame})})

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
            raise ValueError(f"output.eval_every 0 never measures eval.metric {self.eval.metric}")
        return self
