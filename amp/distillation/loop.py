"""The loop over the steps: held-out measurements, stops, and what is kept of it.

B images, C channels, S side in pixels.
"""

import signal
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from amp.data.layouts import Source
from amp.data.speed import LoopSpeed, in_words
from amp.distillation.keeping import Keeper
from amp.distillation.trainer import NotFiniteError, Trainer
from amp.distillation.validation import LOSS, Validation
from amp.errors import StoppedError
from amp.run.console import progress, say
from amp.run.processes.signals import stop_on_signals
from amp.run.world import world
from amp.settings.distill import DistillOutputSettings


class TrainingBatches(Protocol):
    """What the loop asks of the training images."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """(B / processes, C, S, S) of its batches, from batch `start` on."""

    def files(self, epoch: int, batch: int) -> list[Source]:
        """Of a batch; empty where its images have none."""


class Loop:
    """Trains a student to the end of its schedule; goes on by itself from what its keeper holds.

    Args:
        trainer: before its first step.
        batches: the training images, whose epochs `optim.epochs` counts.
        keeper: of checkpoints and records.
        output: how often something is saved, logged and measured.
        validation: what is measured every `output.eval_every` steps; the best student's checkpoint is kept.
    """

    def __init__(
        self,
        trainer: Trainer,
        batches: TrainingBatches,
        keeper: Keeper,
        output: DistillOutputSettings,
        validation: Validation | None = None,
    ) -> None:
        self.trainer, self.batches, self.keeper = trainer, batches, keeper
        self.output, self.validation = output, validation or Validation()
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def train(self) -> dict[str, float]:
        """Trains to the end, which the keeper holds. Returns the last step's record.

        Raises:
            UserError: what the keeper holds is of another run, or cannot be read.
            StoppedError: SIGTERM or Ctrl-C came, a loss is not finite, or the disk is full; with what to do.
        """
        self.best, self.last = self.keeper.resume(self.trainer)
        trainer, total = self.trainer, self.trainer.total_steps
        speed = LoopSpeed(trainer.batch_size, world().device)
        words = ""
        bar = progress(speed.watch(self._remaining()), "distil", "step", total=total, initial=trainer.step)
        self._say_start()
        with self.keeper.writing(trainer) as write, stop_on_signals() as asked:
            for images_BCHW in bar:
                try:
                    record, stop = trainer.train_step(images_BCHW, asked=asked)
                except NotFiniteError as failure:
                    raise self._not_finite(failure) from None
                done = trainer.step == total
                found, improved = self._evaluate()
                self.last = record = record | found
                told = None
                if record["step"] % self.output.log_every == 0 or done or found:
                    told = speed.read(total - trainer.step)
                    words = in_words(told)
                write(record, told)
                bar.set_postfix_str(f"loss {record['loss']:.4g}, lr {record['lr']:.2g}, {words}")
                if done or stop or improved or trainer.step % self.output.save_every == 0:
                    self.keeper.save(trainer, self.best, self.last, wait=bool(done or stop))
                if stop and not done:
                    raise self._stopped(stop)
        if LOSS in self.last:
            say(f"loss on held-out images: {self.last[LOSS]:.4g} after the last step")
        return self.last

    def _remaining(self) -> Iterator[Tensor]:
        first, start = divmod(self.trainer.step, len(self.batches))
        for epoch in range(first, self.trainer.optim.epochs):
            yield from self.batches.epoch(epoch, start if epoch == first else 0)

    def _say_start(self) -> None:
        """What is measured before the first step: all its images are read once, and the gain can be told later."""
        if self.trainer.step:
            return
        found = self._measured()
        if LOSS in found:
            say(f"loss on held-out images: {found[LOSS]:.4g} before the first step")
        if metric := self.validation.metric:
            teacher, student = metric.measure(self.trainer.measurable_teacher()), found[metric.name]
            say(f"{metric.name}: teacher {teacher:.4f} and student {student:.4f} before the first step")

    def _evaluate(self) -> tuple[dict[str, float], bool]:
        """What is measured on held-out images, where it is due, and whether it is the best so far."""
        step = self.trainer.step
        due = self.output.eval_every and step % self.output.eval_every == 0
        if not (due or step == self.trainer.total_steps):
            return {}, False
        found = self._measured()
        improved = self.validation.improves(found, self.best)
        if improved:
            self.best = {"step": step, **found}
        return found, improved

    def _measured(self) -> dict[str, float]:
        student = self.trainer.measurable_student()
        return self.validation.measure(student, lambda images_BCHW: self.trainer.losses(images_BCHW)[0])

    def _stopped(self, number: int) -> StoppedError:
        step = self.trainer.step
        told = f"{signal.Signals(number).name} after step {step} of {self.trainer.total_steps}"
        return StoppedError(f"{told}; {self.keeper.where(step)}", 128 + number)

    def _not_finite(self, failure: NotFiniteError) -> StoppedError:
        step = self.trainer.step
        files = self.batches.files(*divmod(step, len(self.batches)))
        return StoppedError(f"{failure}; {self.keeper.list_batch(step, files)}")
