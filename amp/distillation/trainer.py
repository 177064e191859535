"""One step of distillation: gradients and the optimizer's update, on this process's share of a batch. Knows no files.

B images, C channels, S side in pixels, T tokens, D width.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from amp.distillation.losses import distillation_loss
from amp.distillation.optimizer import check_division, make_optimizer, moments, prime, rates
from amp.distillation.placement import as_placed, own_part, place
from amp.errors import StoppedError, UserError
from amp.run.processes.signals import STOPS, StopRequest
from amp.run.world import gathered, gradients_stay_local, local_part, sharded_like, world
from amp.settings.distill import OptimSettings
from amp.towers import TokenReadout, Tower
from amp.towers.given import dtype_of


class NotFiniteError(StoppedError):
    """The loss of a step is infinite or not a number."""

    def __init__(self, loss: float, step: int) -> None:
        super().__init__(f"loss is {loss} at step {step}")


class Outcome:
    """What all processes know of a step once its forward passes are done, on its way to the host.

    Args:
        losses_3: (loss, loss_cls, loss_patch) of this process's share of the batch.
        number: the signal that this process was asked to stop by, or 0.
        step: that the losses are of.
    """

    def __init__(self, losses_3: Tensor, number: int, step: int) -> None:
        stops = losses_3.new_zeros(len(STOPS))
        if number:
            stops[STOPS.index(number)] = 1
        self._shared = world().sum(torch.cat([losses_3, stops])).to("cpu", non_blocking=True)
        self._there = torch.cuda.Event() if losses_3.is_cuda else None
        if self._there is not None:
            self._there.record()
        self.step = step

    def read(self) -> tuple[list[float], int]:
        """The losses of the whole batch, and the signal that any process was asked to stop by, or 0.

        Raises:
            NotFiniteError: the same on every process.
        """
        if self._there is not None:
            self._there.synchronize()
        shared = self._shared.tolist()
        losses = [total / world().size for total in shared[:3]]
        if not math.isfinite(losses[0]):
            raise NotFiniteError(losses[0], self.step)
        return losses, next((known for known, count in zip(STOPS, shared[3:], strict=True) if count), 0)


class Trainer:
    """A teacher, its student and the student's optimizer; what resumes of them is in `state`.

    Args:
        teacher: dense, frozen; None where every step is told its targets.
        student: pruned, its head shared by `share_head`, fp32 or (pure_bf16) bf16 weights. Both towers are moved to
            the device, here, and sharded where `optim` says so.
        batch_size: images of a step, over all processes.
        steps_per_epoch: for the schedule of the rates.
    Attributes:
        step: steps that are done.
    Raises:
        UserError: a step cannot be divided as `optim` says.
    """

    def __init__(
        self, teacher: Tower | None, student: Tower, optim: OptimSettings, batch_size: int, steps_per_epoch: int
    ) -> None:
        check_division(optim, batch_size, world().size)
        self.teacher, self.student, self.optim = teacher, student, optim
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.step, self.total_steps = 0, optim.epochs * steps_per_epoch
        self._teacher = None if teacher is None else place(teacher, optim)[0]
        self._student, self._weights = place(student, optim)
        # Elementwise, so an optimizer of every process's own shards is the optimizer of the whole.
        trained = {name: weight for name, weight in self._weights.items() if weight.requires_grad}
        self._own = {name: own_part(weight) for name, weight in trained.items()}
        self._dtype = dtype_of(student.visual)
        self._optimizer = make_optimizer([p for p in self._own.values() if p.numel()], optim)

    @property
    def num_own(self) -> int:
        """Trained parameters, or elements of their shards, that this process steps."""
        return sum(own.numel() for own in self._own.values())

    def train_step(
        self, images_BCHW: Tensor, target_BTD: Tensor | None = None, asked: StopRequest | None = None
    ) -> tuple[dict[str, float], int]:
        """One step of the optimizer on this process's share of a batch.

        Args:
            images_BCHW: (B / processes, C, S, S) fp32.
            target_BTD: the teacher's tokens of these images, where they are known.
            asked: a stop that this process was asked for; it is shared along with the losses.
        Returns:
            the step's record `{step, loss, loss_cls, loss_patch, lr, weight_decay}`, its losses those of the whole
            batch; and the signal that any process was asked to stop by, or 0.
        Raises:
            NotFiniteError: before the update, the same on every process.
            UserError: out of memory.
        """
        lr, weight_decay = rates(self.step, self.optim, self.batch_size, self.steps_per_epoch)
        for group in self._optimizer.param_groups:
            group.update(lr=lr, weight_decay=weight_decay)
        try:
            outcome = self.gradients(world().take(images_BCHW), target_BTD, asked)
        except torch.OutOfMemoryError:
            advice = "--dry_run shows what takes it; use optim.accumulate, activation_checkpointing or parallel: fsdp"
            raise UserError(
                "data.batch_size", f"out of memory on {world().device}: {advice}", rank_local=True
            ) from None
        losses, stop = outcome.read()
        self.update()
        self.forget_gradients()
        self.step += 1
        told = dict(zip(("loss", "loss_cls", "loss_patch"), losses, strict=True))
        return {"step": self.step - 1, **told, "lr": lr, "weight_decay": weight_decay}, stop

    def target(self, images_BCHW: Tensor) -> Tensor:
        """The teacher's tokens (B, T, D) of images on the device."""
        assert self.teacher is not None
        assert self._teacher is not None
        with torch.inference_mode(), self._autocast():
            tokens_BTD: Tensor = self._teacher(images_BCHW.to(self.teacher.dtype))
            return tokens_BTD

    def gradients(
        self, images_BCHW: Tensor, target_BTD: Tensor | None = None, asked: StopRequest | None = None
    ) -> Outcome:
        """Adds the gradients of this process's share of a batch, averaged over all.

        The share is worked off in `optim.accumulate` micro-batches. A GPU may still be at the last backward pass when
        this returns; the outcome is there before that, so that whoever reads it does not leave the GPU without work.

        Raises:
            NotFiniteError: where the optimizer steps in the backward pass; otherwise the outcome raises it.
        """
        total_3 = torch.zeros(3, device=images_BCHW.device)
        parts = images_BCHW.chunk(self.optim.accumulate)
        targets = [None] * len(parts) if target_BTD is None else target_BTD.chunk(self.optim.accumulate)
        # One region for all micro-batches, so that autocast casts each weight once.
        with self._autocast() if len(parts) > 1 else nullcontext():
            for number, (part_BCHW, part_BTD) in enumerate(zip(parts, targets, strict=True), 1):
                with nullcontext() if number == len(parts) else gradients_stay_local(self._student):
                    losses = self.losses(part_BCHW, part_BTD)
                    total_3 += torch.stack(losses).detach() / len(parts)
                    if number == len(parts):
                        outcome = Outcome(total_3, 0 if asked is None else asked.number, self.step)
                        if self.optim.step_in_backward:
                            outcome.read()
                    with torch.autocast(world().device.type, enabled=False):
                        (losses[0] / len(parts)).backward()
        return outcome

    def losses(self, images_BCHW: Tensor, target_BTD: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, loss_cls, loss_patch) of images on the device, as of `distillation_loss`."""
        if target_BTD is None:
            target_BTD = self.target(images_BCHW)
        with self._autocast():
            tokens_BTD = self._student(images_BCHW.to(self._dtype))
        return distillation_loss(tokens_BTD, target_BTD, self.student.num_prefix_tokens, self.student.read_tokens)

    def update(self) -> None:
        """The optimizer's step, with the gradients that are there."""
        for name, own in self._own.items():
            gradient = self._weights[name].grad
            own.grad = None if gradient is None else local_part(gradient)
        if not self.optim.step_in_backward:
            self._optimizer.step()

    def forget_gradients(self) -> None:
        """Frees the gradients, so that the next ones start from nothing."""
        for name, own in self._own.items():
            own.grad = self._weights[name].grad = None

    def measurable_teacher(self) -> Tower:
        """The teacher as a metric can ask it where it is placed; every process must ask equally often."""
        assert self.teacher is not None
        assert self._teacher is not None
        return as_placed(self.teacher, self._teacher, self.teacher.dtype, self._autocast)

    def measurable_student(self) -> Tower:
        """The student as a metric can ask it where it is placed; every process must ask equally often."""
        return as_placed(self.student, self._student, self._dtype, self._autocast)

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by name, each process its shards; to be saved, or filled by a checkpoint."""
        state: dict[str, Tensor] = {}
        for name, own in self._own.items():
            whole = self._weights[name].detach()
            state[f"student.{name}"] = whole
            for key, moment in moments(self._optimizer, own).items():
                state[f"{key}.{name}"] = sharded_like(moment, whole)
        return state

    def prime(self, step: int) -> None:
        """As after `step` steps, but for what `state` holds, which is then to be filled."""
        prime(self._optimizer, step)
        self.step = step

    def weights(self) -> dict[str, Tensor]:
        """The student tower's parameters by name, whole, on the CPU of the main process; every process must ask."""
        whole = {}
        for name, weight in self._weights.items():  # one after another: a process holds its shards, and one weight
            tensor = gathered(weight)
            if world().is_main:
                whole[name] = tensor.cpu()
        return whole

    def close(self) -> None:
        """Leaves the towers' modules as they were, with the weights as they are now."""
        for readout in (self._teacher, self._student):
            if isinstance(readout, TokenReadout):
                readout.close()

    def _autocast(self) -> AbstractContextManager[object]:
        if self.optim.precision == "fp32":
            return nullcontext()
        return torch.autocast(world().device.type, torch.bfloat16)
