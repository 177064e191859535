"""The training loop: a pruned student learns its dense teacher's last tokens, without labels.

B images, C channels, S side in pixels, T tokens, D width.
"""

import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from amp.data.batches import Batches
from amp.distill.losses import distillation_loss
from amp.distill.optimizer import check_division, make_optimizer, moments, prime, rates
from amp.distill.placement import own_part, place
from amp.distill.speed import Pace, in_words
from amp.distill.validation import Validation, placed
from amp.errors import StoppedError, UserError
from amp.run.checkpoints import Checkpoints
from amp.run.console import progress, say
from amp.run.files import atomic
from amp.run.identity import check_same
from amp.run.signals import STOPS, StopRequest, stop_on_signals
from amp.run.world import gathered, gradients_stay_local, local_part, sharded_like, world
from amp.settings.distill import DistillOutputSettings, OptimSettings
from amp.towers import Tower


@dataclass
class Distiller:
    """One run: models, optimizer, schedule, log and checkpoints; resumes by itself from its folder.

    Args:
        teacher: dense, frozen. student: pruned, its head shared by `share_head`, fp32 or (pure_bf16) bf16 weights.
            Their towers are moved to the device, here, and sharded where the settings say so.
        header: settings of the run, recorded in the checkpoints; a checkpoint of other settings is refused.
        validation: what is measured every `output.eval_every` steps; the best one's checkpoint is kept.
    """

    teacher: Tower
    student: Tower
    batches: Batches
    optim: OptimSettings
    output: DistillOutputSettings
    header: Mapping[str, Any]
    validation: Validation = field(default_factory=Validation)
    step: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.folder = Path(self.output.dir)
        self.total_steps = self.optim.epochs * len(self.batches)
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.output.keep)
        check_division(self.optim, self.batches.settings.batch_size, world().size)
        self._teacher, _ = place(self.teacher, self.optim)
        self._student, self._weights = place(self.student, self.optim)
        # Elementwise, so an optimizer of every process's own shards is the optimizer of the whole.
        trained = {name: weight for name, weight in self._weights.items() if weight.requires_grad}
        self._own = {name: own_part(weight) for name, weight in trained.items()}
        self._dtype = next(iter(self._own.values())).dtype
        self._optimizer = make_optimizer([p for p in self._own.values() if p.numel()], self.optim)
        self._resume()

    def run(self) -> dict[str, float]:
        """Trains to the end, which a checkpoint holds. Returns the last step's record.

        Raises:
            StoppedError: SIGTERM or Ctrl-C came, a loss is not finite, or the disk is full; with what to do.
        """
        pace = Pace(self.batches.settings.batch_size, world().device)
        words = ""
        bar = progress(pace.watch(self._remaining()), "distil", "step", total=self.total_steps, initial=self.step)
        self._say_start()
        with self._open_log() as log, self._open_board() as board, stop_on_signals() as asked:
            for images_BCHW in bar:
                last, stop = self.train_step(images_BCHW, asked)
                done = self.step == self.total_steps
                found, improved = self._evaluate()
                self.last = last = last | found
                log.write(json.dumps(last) + "\n")
                if last["step"] % self.output.log_every == 0 or done or found:
                    speed = pace.read(self.total_steps - self.step)
                    words = in_words(speed)
                    board(last | speed)
                bar.set_postfix_str(f"loss {last['loss']:.4g} lr {last['lr']:.2g} {words}")
                if done or stop or improved or self.step % self.output.save_every == 0:
                    log.flush()
                    self._save()
                if stop and not done:
                    raise StoppedError(
                        f"{signal.Signals(stop).name} after step {self.step} of {self.total_steps}; "
                        f"the same command goes on from {self.checkpoints.path(self.step)}",
                        128 + stop,
                    )
        return self.last

    def _evaluate(self) -> tuple[dict[str, float], bool]:
        """What is measured on held-out images, where it is due, and whether it is the best so far."""
        due = self.output.eval_every and self.step % self.output.eval_every == 0
        if not (due or self.step == self.total_steps):
            return {}, False
        student = placed(self.student, self._student, self._dtype, self._autocast)
        found = self.validation.measure(student, lambda images_BCHW: self._losses(images_BCHW)[0])
        improved = self.validation.improves(found, self.best)
        if improved:
            self.best = {"step": self.step, **found}
        return found, improved

    def _say_start(self) -> None:
        """What the metric says of the teacher and of the student before the first step; its images are all read."""
        metric = self.validation.metric
        if metric is None or self.step:
            return
        teacher = metric.measure(placed(self.teacher, self._teacher, self.teacher.dtype, self._autocast))
        student = metric.measure(placed(self.student, self._student, self._dtype, self._autocast))
        say(f"{metric.name}: {teacher:.4f} of the teacher, {student:.4f} of the student before its first step")

    def _remaining(self) -> Iterator[Tensor]:
        first, start = divmod(self.step, len(self.batches))
        for epoch in range(first, self.optim.epochs):
            yield from self.batches.epoch(epoch, start if epoch == first else 0)

    def train_step(self, images_BCHW: Tensor, asked: StopRequest) -> tuple[dict[str, float], int]:
        """One step of the optimizer on this process's share of a batch, (B / processes, C, S, S) fp32.

        Returns:
            the step's record, and the signal that any process was asked to stop by, or 0.
        """
        lr, weight_decay = rates(self.step, self.optim, self.batches.settings.batch_size, len(self.batches))
        for group in self._optimizer.param_groups:
            group.update(lr=lr, weight_decay=weight_decay)
        try:
            losses_3 = self._gradients(images_BCHW.to(world().device, non_blocking=True))
        except torch.OutOfMemoryError:
            advice = "--dry_run shows of what; then optim.accumulate, activation_checkpointing or parallel: fsdp"
            raise UserError(
                "data.batch_size", f"out of memory on {world().device}: {advice}", rank_local=True
            ) from None
        signals = torch.tensor([asked.number == number for number in STOPS], device=losses_3.device)
        shared = world().sum(torch.cat([losses_3, signals])).tolist()
        loss, loss_cls, loss_patch = (total / world().size for total in shared[:3])
        if not math.isfinite(loss):
            raise self._not_finite(loss)
        self._update()
        self._forget_gradients()
        self.step += 1
        record = {
            "step": self.step - 1,
            "loss": loss,
            "loss_cls": loss_cls,
            "loss_patch": loss_patch,
            "lr": lr,
            "weight_decay": weight_decay,
        }
        return record, next((number for number, count in zip(STOPS, shared[3:], strict=True) if count), 0)

    def parts(self, images_BCHW: Tensor) -> tuple[Callable[[], object], ...]:
        """A step's work, to be timed alone: the teacher; the student forward and backward; the optimizer."""
        target_BTD = self._target(images_BCHW)

        def learn() -> None:
            self._forget_gradients()
            self._compare(images_BCHW, target_BTD)[0].backward()

        return lambda: self._target(images_BCHW), learn, self._update

    def _update(self) -> None:
        for name, own in self._own.items():
            gradient = self._weights[name].grad
            own.grad = None if gradient is None else local_part(gradient)
        if not self.optim.step_in_backward:
            self._optimizer.step()

    def _forget_gradients(self) -> None:
        self._optimizer.zero_grad()
        self._student.zero_grad()

    def _gradients(self, images_BCHW: Tensor) -> Tensor:
        """Gradients of this process's share of the batch, averaged over all; its (loss, loss_cls, loss_patch)."""
        total_3 = torch.zeros(3, device=images_BCHW.device)
        parts = images_BCHW.chunk(self.optim.accumulate)
        for number, part_BCHW in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else gradients_stay_local(self._student):
                losses = self._losses(part_BCHW)
                (losses[0] / len(parts)).backward()
            total_3 += torch.stack(losses).detach() / len(parts)
        return total_3

    def _losses(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._compare(images_BCHW, self._target(images_BCHW))

    def _target(self, images_BCHW: Tensor) -> Tensor:
        with torch.inference_mode(), self._autocast():
            tokens_BTD: Tensor = self._teacher(images_BCHW.to(self.teacher.dtype))
            return tokens_BTD

    def _compare(self, images_BCHW: Tensor, target_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self._autocast():
            tokens_BTD = self._student(images_BCHW.to(self._dtype))
        return distillation_loss(tokens_BTD, target_BTD, self.teacher.num_prefix_tokens)

    def _not_finite(self, loss: float) -> StoppedError:
        epoch, batch = divmod(self.step, len(self.batches))
        files = [str(path) for path in self.batches.files(epoch, batch)]
        listed = self.folder / f"batch_of_step_{self.step}.txt"
        if world().is_main:
            with atomic(listed) as partial:
                partial.write_text("\n".join(files) + "\n", encoding="utf-8")
        return StoppedError(
            f"loss is {loss} at step {self.step}; last good checkpoint: {self.checkpoints.last()}; "
            f"the batch: {', '.join(files[:2])}, ..., all of it in {listed}"
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.optim.precision == "fp32":
            return nullcontext()
        return torch.autocast(world().device.type, torch.bfloat16)

    def _open_log(self) -> Any:
        """log.jsonl, cut back to the steps before this one; the main process's."""
        path = self.folder / "log.jsonl"
        if not world().is_main:
            return open("/dev/null", "w", encoding="utf-8")
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        with atomic(path) as partial:
            partial.write_text("".join(lines[: self.step]), encoding="utf-8")
        return path.open("a", encoding="utf-8")

    @contextmanager
    def _open_board(self) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """A function that adds a step's numbers to TensorBoard; the main process's."""
        if not world().is_main:
            yield lambda record: None
            return
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step) as writer:

            def add(record: Mapping[str, float]) -> None:
                for key in record.keys() - {"step"}:
                    writer.add_scalar(key, record[key], int(record["step"]))

            yield add

    def _state(self) -> dict[str, Tensor]:
        """Weights and moments by name, each process its shards."""
        state: dict[str, Tensor] = {}
        for name, own in self._own.items():
            whole = self._weights[name].detach()
            state[f"student.{name}"] = whole
            for key, moment in moments(self._optimizer, own).items():
                state[f"{key}.{name}"] = sharded_like(moment, whole)
        return state

    def _save(self) -> None:
        record = {"header": self.header, "best": self.best, "last": self.last}
        self.checkpoints.save(self.step, self._state(), record, int(self.best.get("step", 0)))

    def _resume(self) -> None:
        steps = self.checkpoints.steps()
        if not steps:
            return
        record = self.checkpoints.record(steps[-1])
        check_same(self.checkpoints.path(steps[-1]), record["header"], self.header)
        prime(self._optimizer, record["step"])
        self.checkpoints.load(steps[-1], self._state())
        self.step, self.best, self.last = record["step"], record["best"], record.get("last", {})
        say(f"resuming after step {self.step} of {self.total_steps} from {self.checkpoints.path(self.step)}")

    def weights(self) -> dict[str, Tensor]:
        """The student tower's parameters by name, whole, on the CPU of the main process; every process must ask."""
        whole = {}
        for name, weight in self._weights.items():  # one after another: a process holds its shards, and one weight
            tensor = gathered(weight)
            if world().is_main:
                whole[name] = tensor.cpu()
        return whole
