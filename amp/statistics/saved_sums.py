"""The sums of some passes over images that are under way, kept in files so that a killed run goes on."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from amp.errors import StoppedError, UserError
from amp.run.files import atomic, room_for
from amp.run.identity import check_same
from amp.run.sealed import read_tensors, write_tensors
from amp.run.world import world

Value = TypeVar("Value")

FINISHED = "finished."  # what the names of results begin with
SMALL_BYTES = 2.0**26  # of a process: written in no time
BYTES_A_SECOND = 2.5e8  # of larger ones, until one has been written
OFTEN = 20  # times what it takes to write them, at least, lie between two writings of larger sums
SECONDS = 60.0  # after which sums are written before their number of batches is reached


class HasSums(Protocol):
    """A scorer: tensors that grow with each batch hold all that it knows."""

    sums: list[Tensor]


class SavedSums:
    """What passes over images have summed so far, in safetensors files.

    The main process's file holds the results of the passes that are over and how many batches of the one under way are
    done. The sums of these lie beside it, those of every process in a file of its own, under one of two names in turn,
    so that the last ones stay until the main file tells of the new ones. Large sums, as of second moments, are written
    so seldom that it takes a twentieth of the time at most; what is lost with a killed run is then sooner done again
    than kept.

    Attributes:
        num_batches: global batches that the sums of the pass under way hold; it goes on with the next one.

    Args:
        header: of the run, with all that decides the sums.
        every: batches between two writings.
        advice: what to do about files that are damaged.
    Raises:
        UserError: the files are of another run, or of another number of processes, or cannot be read.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], every: int, advice: str = "delete it to score again"
    ) -> None:
        self._path, self._every, self._advice = path, every, advice
        self._header = {**header, "settings": {**header["settings"], "processes": world().size}}
        self.num_batches, self._turn, self._finished = world().from_main(self._read)
        self._num_written = self.num_batches
        self._since, self._rate = time.monotonic(), BYTES_A_SECOND

    def restore(self, scorer: HasSums) -> None:
        """Gives the scorer of this process what the files hold of the pass under way.

        Raises:
            UserError: they hold other sums, as of an older version, or of a GPU of another memory.
        """
        if self.num_batches:
            found = _on_all(self._read_own)
            shapes = {str(place): mine.shape for place, mine in enumerate(scorer.sums)}
            if {name: own.shape for name, own in found.items()} != shapes:
                what = "holds sums of another version, or of a GPU with another memory size"
                raise UserError(self._path, f"{what}; {self._advice}")
            for place, mine in enumerate(scorer.sums):
                mine.copy_(found[str(place)])
        self._since = time.monotonic()

    def step(self, scorer: HasSums) -> None:
        """After each batch: writes the files where it is time to. Raises StoppedError when the disk is full."""
        self.num_batches += 1
        if self._is_time(scorer, self.num_batches % self._every == 0):
            self._write_sums(scorer)

    def settle(self, scorer: HasSums) -> None:
        """After the last batch, where it takes long to make something of the sums: as `step`, whatever their number."""
        if self._is_time(scorer, True):
            self._write_sums(scorer)

    def kept(self, name: str, work: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """A result, on the CPU: as an earlier run kept it, or made now and kept.

        Args:
            name: like no other's.
            work: -> tensors that are equal on every process.
        Raises:
            StoppedError: the disk is full.
        """
        return self._keep(name, work, ends_pass=False)

    def finished(self, name: str, work: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """As `kept`, what one of several passes gives, of which the sums then go.

        Args:
            work: may go through `restore`, `step`, `settle` and `kept`.
        """
        return self._keep(name, work, ends_pass=True)

    def _keep(self, name: str, work: Callable[[], Sequence[Tensor]], ends_pass: bool) -> list[Tensor]:
        first = f"{FINISHED}{name}."
        if not any(key.startswith(first) for key in self._finished):
            results = work()
            self._finished |= {f"{first}{place}": result.cpu() for place, result in enumerate(results)}
            if ends_pass:
                self.num_batches = self._num_written = 0
            world().from_main(self._write)
            if ends_pass:
                self._own_path(self._turn).unlink(missing_ok=True)
        number = sum(key.startswith(first) for key in self._finished)
        return [self._finished[f"{first}{place}"] for place in range(number)]

    def _is_time(self, scorer: HasSums, enough_batches: bool) -> bool:
        """Whether to write now, by the main process's clock."""
        own = sum(total.nbytes for total in scorer.sums)
        least = OFTEN * own / self._rate if own > SMALL_BYTES else 0.0
        elapsed = time.monotonic() - self._since
        return bool(world().broadcast(elapsed >= (least if enough_batches else max(least, SECONDS))))

    def _write_sums(self, scorer: HasSums) -> None:
        started, before, self._turn = time.monotonic(), self._own_path(self._turn), 1 - self._turn
        self._num_written = self.num_batches
        about = {"header": self._header, "num_batches": self.num_batches}
        own = {str(place): total for place, total in enumerate(scorer.sums)}

        def write() -> None:
            with room_for(self._own_path(self._turn)), atomic(self._own_path(self._turn)) as partial:
                write_tensors(partial, own, about)

        _on_all(write)
        world().from_main(self._write)
        before.unlink(missing_ok=True)
        self._since = time.monotonic()
        self._rate = sum(total.nbytes for total in scorer.sums) / max(self._since - started, 1e-3)

    def _write(self) -> None:
        about = {"header": self._header, "num_batches": self._num_written, "turn": self._turn}
        with room_for(self._path), atomic(self._path) as partial:
            write_tensors(partial, self._finished, about)

    def _own_path(self, turn: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.{world().rank}{'ab'[turn]}{self._path.suffix}")

    def _read(self) -> tuple[int, int, dict[str, Tensor]]:
        if not self._path.exists():
            return 0, 0, {}
        about, finished = read_tensors(self._path, self._advice)
        if not {"header", "num_batches", "turn"} <= about.keys():
            raise UserError(self._path, f"cannot be read (it holds no sums of this version); {self._advice}")
        check_same(self._path, about["header"], self._header)
        return about["num_batches"], about["turn"], finished

    def _read_own(self) -> dict[str, Tensor]:
        path, advice = self._own_path(self._turn), f"delete {self._path} to start again"
        about, sums = read_tensors(path, advice)
        check_same(path, about["header"], self._header)
        if about["num_batches"] != self.num_batches:
            raise UserError(path, f"does not hold the {self.num_batches} batches of {self._path.name}; {advice}")
        return sums


def forget_sums(path: Path) -> None:
    """Removes what any number of processes have saved under this path."""
    for file in (path, *path.parent.glob(f"{path.stem}.*{path.suffix}")):
        file.unlink(missing_ok=True)


def _on_all(work: Callable[[], Value]) -> Value:
    """What each process makes by itself, where all can; else the first one's error on every one."""
    made: Any = None
    try:
        made = work()
    except (UserError, StoppedError) as error:
        error.rank_local = False
        made = error
    failures = [error for error in world().gather_objects(made if isinstance(made, Exception) else None) if error]
    if failures:
        raise failures[0]
    return made
