"""The sums of a scoring that is under way, kept in a file so that a killed one goes on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from amp.errors import UserError
from amp.run.files import atomic, room_for
from amp.run.identity import check_same
from amp.run.sealed import read_tensors, write_tensors
from amp.run.world import world

ADVICE = "delete it to score anew"
FINISHED = "finished."  # what the names of results begin with
SUMS_GIGABYTES = 8.0  # of all processes, which one gathers in its memory to write them


class HasSums(Protocol):
    """A scorer: tensors that grow with each batch hold all that it knows."""

    sums: list[Tensor]


class SavedSums:
    """What a scoring has summed so far, in one safetensors file of the main process.

    A scoring is of one or more passes over the images. The file holds the results of those that are over, and every
    process's sums after some batches of the one under way, unless these take more than `SUMS_GIGABYTES` together: such
    a pass is done again from its first batch. A reconstruction's second moments are that large: 8 bytes times the
    square of its hidden width, for each block of a group and each process.

    Attributes:
        num_batches: global batches that the sums of the pass under way hold; it goes on with the next one.

    Args:
        header: of the run, with all that decides the scores.
        every: batches between two writings.
    Raises:
        UserError: the file is of another run, or of another number of processes, or cannot be read.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], every: int) -> None:
        self._path, self._every = path, every
        self._header = {**header, "settings": {**header["settings"], "processes": world().size}}
        self.num_batches, self._found = world().from_main(self._read)
        self._finished = {name: self._found.pop(name) for name in list(self._found) if name.startswith(FINISHED)}

    def restore(self, scorer: HasSums) -> None:
        """Gives the scorer of this process what the file held of the pass under way."""
        for place, mine in enumerate(scorer.sums if self.num_batches else ()):
            mine.copy_(self._found[f"{world().rank}.{place}"])
        self._found = {}

    def step(self, scorer: HasSums) -> None:
        """After each batch: writes the file where it is time to. Raises StoppedError when the disk is full."""
        self.num_batches += 1
        small = sum(total.nbytes for total in scorer.sums) * world().size <= SUMS_GIGABYTES * 1e9
        if self.num_batches % self._every == 0 and small:
            sums = world().gather_on_main([total.cpu() for total in scorer.sums])
            world().from_main(lambda: self._write(sums))

    def finished(self, name: str, work: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """What one of several passes gives, on the CPU: as an earlier run kept it, or done now and kept.

        Args:
            name: of the pass, like no other's.
            work: -> tensors that are equal on every process; it may go through `restore` and `step`.
        Raises:
            StoppedError: the disk is full.
        """
        first = f"{FINISHED}{name}."
        if not any(key.startswith(first) for key in self._finished):
            results = work()
            self._finished |= {f"{first}{place}": result.cpu() for place, result in enumerate(results)}
            self.num_batches = 0
            world().from_main(lambda: self._write([]))
        number = sum(key.startswith(first) for key in self._finished)
        return [self._finished[f"{first}{place}"] for place in range(number)]

    def _write(self, sums: Sequence[Sequence[Tensor]]) -> None:
        tensors = {f"{rank}.{place}": total for rank, own in enumerate(sums) for place, total in enumerate(own)}
        about = {"header": self._header, "num_batches": self.num_batches}
        with room_for(self._path), atomic(self._path) as partial:
            write_tensors(partial, self._finished | tensors, about)

    def _read(self) -> tuple[int, dict[str, Tensor]]:
        if not self._path.exists():
            return 0, {}
        about, sums = read_tensors(self._path, ADVICE)
        if not {"header", "num_batches"} <= about.keys():
            raise UserError(self._path, f"cannot be read (no sums of scores); {ADVICE}")
        check_same(self._path, about["header"], self._header)
        return about["num_batches"], sums
