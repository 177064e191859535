"""The store of a run's resumable states: `checkpoints/step_0000500/`, each whole or not there; written in a thread."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from amp.errors import StoppedError, UserError
from amp.run.files import file_sha256
from amp.run.identity import check_same
from amp.run.run import Run
from amp.run.saving import TensorWriter, load_tensors
from amp.run.sealed import check_digest, read_json, write_json
from amp.run.world import world

RECORD = "state.json"


class Checkpoints:
    """The states of a run after some of its steps, in `checkpoints/` of its folder.

    A state is tensors (safetensors, in shards of the processes) and a JSON record, with the header of its run.

    Args:
        keep: how many stay, the last ones.
    """

    def __init__(self, run: Run[Any], keep: int) -> None:
        self.run, self.keep = run, keep
        self.folder = run.path("checkpoints")
        self._writer: TensorWriter | None = None

    def path(self, step: int) -> Path:
        """Of a checkpoint, a folder, whether it is there or not."""
        return self.folder / f"step_{step:07d}"

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, first to last, as the main process sees them.

        Raises:
            UserError: no checkpoint can be written, since a file stands where their folder belongs.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(self.folder, "is a file; move it away: checkpoints are written to a folder of that name")
        return world().broadcast(self._steps() if world().is_main else None)

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_" + "[0-9]" * 7))

    def last(self) -> str:
        """The last checkpoint's path as a message names it, or 'none'; without asking other processes."""
        steps = self._steps()
        return str(self.path(steps[-1])) if steps else "none"

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Makes room for copies of the tensors, so that the first checkpoint holds up no step."""
        self._writer = TensorWriter()
        self._writer.prepare(tensors)

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any], best: int) -> None:
        """Copies a checkpoint, which is then written in a thread beside its name, and renamed; those too many go.

        The write before it is waited for. What ends this one is raised by the next call of `save`, `check` or `wait`.

        Args:
            tensors: each process its shards; they may change once this has returned.
            record: JSON-able; the run's header and `step` are added.
            best: a step whose checkpoint stays whatever its age; 0: none.
        Raises:
            StoppedError: it, or the one before, cannot be written; the checkpoints before are untouched.
        """
        self.wait()
        partial = self.folder / f".step_{step:07d}.partial"
        self._on_main(lambda: _make_empty(partial))
        is_main = world().is_main

        def finish(error: OSError | None) -> None:
            try:
                if error is not None:
                    raise error
                if is_main:
                    self._finish(step, partial, record, best)
            except OSError as met:
                if is_main:
                    shutil.rmtree(partial, ignore_errors=True)
                raise self._cannot_write(step, met) from None

        self._writer = self._writer or TensorWriter()
        self._writer.start(tensors, partial, finish)

    def check(self) -> None:
        """Raises the StoppedError of a checkpoint that could not be written, on every process."""
        if world().broadcast(self._writer is not None and self._writer.failed):
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint that was copied last is there. Raises StoppedError on every process."""
        if self._writer is None:
            return
        met: StoppedError | None = None
        try:
            self._writer.wait()
        except StoppedError as error:
            met = error

        def tell() -> None:
            if met is not None:
                raise met

        world().from_main(tell)

    def close(self) -> None:
        """Waits for the write at work, whatever comes of it, and frees the copies in memory."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _on_main(self, write: Callable[[], None]) -> None:
        def told() -> None:
            try:
                write()
            except OSError as error:
                raise self._cannot_write(None, error) from None

        world().from_main(told)

    def _cannot_write(self, step: int | None, error: OSError) -> StoppedError:
        what = self.folder if step is None else self.path(step)
        return StoppedError(
            f"{what} cannot be written ({error.strerror or error}); last good checkpoint: {self.last()}; "
            "free disk space, then run the same command to continue from there"
        )

    def _finish(self, step: int, partial: Path, record: Mapping[str, Any], best: int) -> None:
        digests = {path.name: file_sha256(str(path)) for path in sorted(partial.iterdir())}
        whole = {"header": self.run.header, **record, "step": step, "files_sha256": digests}
        write_json(partial / RECORD, whole)
        for path in (partial / RECORD, partial):
            _sync(path)
        _discard(self.path(step))
        partial.rename(self.path(step))
        _sync(self.folder)
        for old in set(self._steps()[: -self.keep]) - {best}:
            _discard(self.path(old))

    def record(self, step: int) -> dict[str, Any]:
        """What was recorded beside a checkpoint's tensors.

        Raises:
            UserError: it cannot be read, is damaged, or is another run's.
        """
        return world().from_main(lambda: self._record(step))

    def _record(self, step: int) -> dict[str, Any]:
        advice = f"delete {self.path(step)} to continue from an earlier one"
        record = read_json(self.path(step) / RECORD, advice)
        check_same(self.path(step), record.pop("header", {}), self.run.identity, self.run.key)
        for name, digest in dict(record.pop("files_sha256", {})).items():
            check_digest(self.path(step) / name, digest, advice)
        return record

    def load(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Fills `tensors`, on any number of processes. Raises UserError when the checkpoint cannot be read."""
        try:
            load_tensors(tensors, self.path(step))
        except OSError as error:
            raise UserError(
                self.path(step), f"cannot be read ({error}); delete it to continue from an earlier one"
            ) from None


def _make_empty(folder: Path) -> None:
    for left in folder.parent.glob(".step_*.partial"):
        shutil.rmtree(left)
    folder.mkdir(parents=True)


def _discard(folder: Path) -> None:
    """Removes a checkpoint, whose name goes first."""
    if folder.exists():
        left = folder.with_name(f".{folder.name}.old.partial")
        folder.rename(left)
        shutil.rmtree(left)


def _sync(path: Path) -> None:
    """Until the disk has it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
