"""Settings of the optimizer, and of how the work of a step is divided."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from amp.settings.base import Count, Settings, Share

Parallel = Literal["ddp", "fsdp"]


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
