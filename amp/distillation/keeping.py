"""What a distillation leaves in its run's folder: checkpoints to go on from, log.jsonl and TensorBoard.

B images.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from torch.utils.tensorboard import SummaryWriter

from amp.data.layouts import Source
from amp.distillation.trainer import Trainer
from amp.errors import UserError
from amp.run.checkpoints import Checkpoints
from amp.run.console import say
from amp.run.files import atomic
from amp.run.run import Run
from amp.run.sealed import parse_json
from amp.run.world import world
from amp.settings.distill import DistillConfig

ADVICE = "move it away to start a new log where the run continues"

# What TensorBoard calls what the log holds, in groups; everything else is an accuracy.
TAGS = {
    "loss": "loss/total",
    "loss_cls": "loss/class token",
    "loss_patch": "loss/patch tokens",
    "val_loss": "loss/held-out images",
    "lr": "schedule/learning rate",
    "weight_decay": "schedule/weight decay",
    "images_per_second": "speed/images per second",
    "data_wait_share": "speed/share of the time waiting for data",
    "memory_gb": "speed/peak memory (GB)",
    "hours_left": "speed/hours left",
}
Record = Mapping[str, float]
# A step's record, and what is told of the loop's speed where that is due.
Write = Callable[[Record, Record | None], None]


class Keeper(Protocol):
    """What the loop asks of whatever keeps a run."""

    def resume(self, trainer: Trainer) -> tuple[dict[str, float], dict[str, float]]:
        """Takes the trainer to the last step that is kept; the best measurements and the last record until there."""

    def writing(self, trainer: Trainer) -> AbstractContextManager[Write]:
        """Within the block, records of steps can be written."""

    def save(self, trainer: Trainer, best: Record, last: Record, wait: bool) -> None:
        """Keeps the trainer as it is; with `wait` it is kept when this returns."""

    def where(self, step: int) -> str:
        """What a message says of going on after a step."""

    def list_batch(self, step: int, files: list[Source]) -> str:
        """What a message says of the images of a step whose loss is not finite."""


class RunKeeper:
    """Keeps a run in its folder."""

    def __init__(self, run: Run[DistillConfig]) -> None:
        self.run = run
        self.checkpoints = Checkpoints(run, run.config.output.keep)
        self._log: TextIO | None = None

    def resume(self, trainer: Trainer) -> tuple[dict[str, float], dict[str, float]]:
        """From the last checkpoint, if there is one; the log is cut back to its step."""
        best: dict[str, float] = {}
        last: dict[str, float] = {}
        steps = self.checkpoints.steps()
        step = steps[-1] if steps else 0
        record = self.checkpoints.record(step) if steps else {}
        trainer.prime(step)
        if steps:
            self.checkpoints.load(step, trainer.state())
            best, last = record["best"], record.get("last", {})
            say(f"resuming after step {step} of {trainer.total_steps} from {self.checkpoints.path(step)}")
        world().from_main(lambda: self._make_room(trainer.step))
        return best, last

    def _make_room(self, step: int) -> None:
        check_board(self.run.path("tensorboard"))
        cut_log(self.run.path("log.jsonl"), step)

    @contextmanager
    def writing(self, trainer: Trainer) -> Iterator[Write]:
        """To log.jsonl every record, to TensorBoard those with a speed; by the main process.

        With a speed, a checkpoint that could not be written is told of too.
        """
        self.checkpoints.prepare(trainer.state())
        with closing(self.checkpoints), self._open_log() as self._log, self._open_board(trainer.step) as board:
            log = self._log

            def write(record: Record, told: Record | None) -> None:
                log.write(json.dumps(record) + "\n")
                if told is not None:
                    board({**record, **told})
                    self.checkpoints.check()

            yield write

    def save(self, trainer: Trainer, best: Record, last: Record, wait: bool) -> None:
        """A checkpoint of this step, written while the next ones are done."""
        if self._log is not None:
            self._log.flush()
        record = {"best": dict(best), "last": dict(last)}
        self.checkpoints.save(trainer.step, trainer.state(), record, int(best.get("step", 0)))
        if wait:
            self.checkpoints.wait()

    def where(self, step: int) -> str:
        """The same command, from the checkpoint of that step."""
        return f"run the same command to continue from {self.checkpoints.path(step)}"

    def list_batch(self, step: int, files: list[Source]) -> str:
        """The first ones, and a file of all of them; and the checkpoint to go on from."""
        self.checkpoints.wait()
        names = [str(path) for path in files]
        listed = self.run.path(f"batch_of_step_{step}.txt")
        if world().is_main:
            with atomic(listed) as partial:
                partial.write_text("\n".join(names) + "\n", encoding="utf-8")
        told = f"the images of this batch, {', '.join(names[:2])}, ..., are listed in {listed}"
        return f"last good checkpoint: {self.checkpoints.last()}; {told}"

    def _open_log(self) -> TextIO:
        if not world().is_main:
            return open("/dev/null", "w", encoding="utf-8")
        return self.run.path("log.jsonl").open("a", encoding="utf-8")

    @contextmanager
    def _open_board(self, step: int) -> Iterator[Callable[[Record], None]]:
        if not world().is_main:
            yield lambda record: None
            return
        with SummaryWriter(str(self.run.path("tensorboard")), purge_step=step) as writer:

            def add(record: Record) -> None:
                for key in record.keys() - {"step"}:
                    writer.add_scalar(TAGS.get(key, f"accuracy/{key}"), record[key], int(record["step"]))

            yield add


class MemoryKeeper:
    """Keeps the records of a run in memory, and nothing else."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def resume(self, trainer: Trainer) -> tuple[dict[str, float], dict[str, float]]:
        """There is nothing to go on from."""
        return {}, {}

    @contextmanager
    def writing(self, trainer: Trainer) -> Iterator[Write]:
        """To the list."""
        yield lambda record, told: self.records.append(dict(record))

    def save(self, trainer: Trainer, best: Record, last: Record, wait: bool) -> None:
        """The student in memory is as it is."""

    def where(self, step: int) -> str:
        """Of the student in memory."""
        return f"the student keeps the weights of these {step} steps"

    def list_batch(self, step: int, files: list[Source]) -> str:
        """Images in memory have no names."""
        return "the student keeps the weights of the step before; a smaller base_lr may help"


def cut_log(path: Path, step: int) -> None:
    """Leaves the lines of the steps before `step`; what a killed run wrote after its last checkpoint is written again.

    Raises:
        UserError: a line that is to stay is damaged, or the file cannot be read.
    """
    kept: list[str] = []
    for number, line in enumerate(_read(path), 1):
        try:
            found = parse_json(line)["step"]
            whole = isinstance(found, int) and line.endswith("\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if whole and found >= step:
            break
        if not whole and number > step:
            break  # by a kill; the step is done again
        if not whole:
            raise UserError(path, f"line {number} is damaged, but steps up to {step} are done; {ADVICE}")
        kept.append(line)
    if len(kept) < step:
        say(f"note: {path} holds only {len(kept)} of the {step} finished steps")
    with atomic(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def _read(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror}); {ADVICE}") from None


def check_board(path: Path) -> None:
    """Raises UserError where TensorBoard's folder cannot be one."""
    if path.exists() and not path.is_dir():
        raise UserError(path, "is a file, but TensorBoard needs a folder of that name; move it away")
