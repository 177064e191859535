"""The loop over the steps: log.jsonl, TensorBoard, held-out measurements, checkpoints, stops, and how a run goes on.

B images, C channels, S side in pixels.
"""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from amp.data.batches import Batches
from amp.distillation.log import check_board, cut_log
from amp.distillation.speed import LoopSpeed, in_words
from amp.distillation.trainer import NotFiniteError, Trainer
from amp.distillation.validation import Validation
from amp.errors import StoppedError
from amp.run.checkpoints import Checkpoints
from amp.run.console import progress, say
from amp.run.files import atomic
from amp.run.processes.signals import stop_on_signals
from amp.run.run import Run
from amp.run.world import world
from amp.settings.distill import DistillConfig


class Loop:
    """Trains a student to the end of its schedule, in a run's folder; goes on by itself from its last checkpoint.

    Args:
        trainer: before its first step.
        batches: the training images, whose epochs `optim.epochs` counts.
        validation: what is measured every `output.eval_every` steps; the best student's checkpoint is kept.
    """

    def __init__(
        self, run: Run[DistillConfig], trainer: Trainer, batches: Batches, validation: Validation | None = None
    ) -> None:
        self.run, self.trainer, self.batches = run, trainer, batches
        self.output, self.validation = run.config.output, validation or Validation()
        self.checkpoints = Checkpoints(run, self.output.keep)
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def train(self) -> dict[str, float]:
        """Trains to the end, which a checkpoint holds. Returns the last step's record.

        Raises:
            UserError: the checkpoints in the folder are of another run, or cannot be read; log.jsonl is
                damaged, or tensorboard is no folder.
            StoppedError: SIGTERM or Ctrl-C came, a loss is not finite, or the disk is full; with what to do.
        """
        self._resume()
        world().from_main(self._make_room)
        trainer, total = self.trainer, self.trainer.total_steps
        speed = LoopSpeed(trainer.batch_size, world().device)
        words = ""
        bar = progress(speed.watch(self._remaining()), "distil", "step", total=total, initial=trainer.step)
        self._say_start()
        with self._open_log() as log, self._open_board() as board, stop_on_signals() as asked:
            for images_BCHW in bar:
                try:
                    record, stop = trainer.train_step(images_BCHW, asked=asked)
                except NotFiniteError as failure:
                    raise self._not_finite(failure) from None
                done = trainer.step == total
                found, improved = self._evaluate()
                self.last = record = record | found
                log.write(json.dumps(record) + "\n")
                if record["step"] % self.output.log_every == 0 or done or found:
                    told = speed.read(total - trainer.step)
                    words = in_words(told)
                    board(record | told)
                bar.set_postfix_str(f"loss {record['loss']:.4g} lr {record['lr']:.2g} {words}")
                if done or stop or improved or trainer.step % self.output.save_every == 0:
                    log.flush()
                    self._save()
                if stop and not done:
                    raise self._stopped(stop)
        return self.last

    def _make_room(self) -> None:
        check_board(self.run.path("tensorboard"))
        cut_log(self.run.path("log.jsonl"), self.trainer.step)

    def _remaining(self) -> Iterator[Tensor]:
        first, start = divmod(self.trainer.step, len(self.batches))
        for epoch in range(first, self.trainer.optim.epochs):
            yield from self.batches.epoch(epoch, start if epoch == first else 0)

    def _say_start(self) -> None:
        """What the metric says of the teacher and of the student before the first step; its images are all read."""
        metric = self.validation.metric
        if metric is None or self.trainer.step:
            return
        teacher = metric.measure(self.trainer.measurable_teacher())
        student = metric.measure(self.trainer.measurable_student())
        say(f"{metric.name}: {teacher:.4f} of the teacher, {student:.4f} of the student before its first step")

    def _evaluate(self) -> tuple[dict[str, float], bool]:
        """What is measured on held-out images, where it is due, and whether it is the best so far."""
        step = self.trainer.step
        due = self.output.eval_every and step % self.output.eval_every == 0
        if not (due or step == self.trainer.total_steps):
            return {}, False
        student = self.trainer.measurable_student()
        found = self.validation.measure(student, lambda images_BCHW: self.trainer.losses(images_BCHW)[0])
        improved = self.validation.improves(found, self.best)
        if improved:
            self.best = {"step": step, **found}
        return found, improved

    def _save(self) -> None:
        record = {"best": self.best, "last": self.last}
        self.checkpoints.save(self.trainer.step, self.trainer.state(), record, int(self.best.get("step", 0)))

    def _resume(self) -> None:
        steps = self.checkpoints.steps()
        if not steps:
            return
        step = steps[-1]
        record = self.checkpoints.record(step)
        self.trainer.prime(step)
        self.checkpoints.load(step, self.trainer.state())
        self.best, self.last = record["best"], record.get("last", {})
        say(f"resuming after step {step} of {self.trainer.total_steps} from {self.checkpoints.path(step)}")

    def _stopped(self, number: int) -> StoppedError:
        step = self.trainer.step
        return StoppedError(
            f"{signal.Signals(number).name} after step {step} of {self.trainer.total_steps}; "
            f"the same command goes on from {self.checkpoints.path(step)}",
            128 + number,
        )

    def _not_finite(self, failure: NotFiniteError) -> StoppedError:
        """With the images of the step, all of them in a file."""
        step = self.trainer.step
        files = [str(path) for path in self.batches.files(*divmod(step, len(self.batches)))]
        listed = self.run.path(f"batch_of_step_{step}.txt")
        if world().is_main:
            with atomic(listed) as partial:
                partial.write_text("\n".join(files) + "\n", encoding="utf-8")
        return StoppedError(
            f"{failure}; last good checkpoint: {self.checkpoints.last()}; "
            f"the batch: {', '.join(files[:2])}, ..., all of it in {listed}"
        )

    def _open_log(self) -> TextIO:
        """log.jsonl; the main process's."""
        if not world().is_main:
            return open("/dev/null", "w", encoding="utf-8")
        return self.run.path("log.jsonl").open("a", encoding="utf-8")

    @contextmanager
    def _open_board(self) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """A function that adds a step's numbers to TensorBoard; the main process's."""
        if not world().is_main:
            yield lambda record: None
            return
        with SummaryWriter(str(self.run.path("tensorboard")), purge_step=self.trainer.step) as writer:

            def add(record: Mapping[str, float]) -> None:
                for key in record.keys() - {"step"}:
                    writer.add_scalar(key, record[key], int(record["step"]))

            yield add
