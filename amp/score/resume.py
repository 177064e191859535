"""The sums of a scoring that is under way, kept in a file so that a killed one goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from amp.errors import UserError
from amp.run.files import atomic, room_for
from amp.run.identity import check_same
from amp.run.sealed import read_tensors, write_tensors
from amp.run.world import world

ADVICE = "delete it to score anew"


class HasSums(Protocol):
    """A scorer: tensors that grow with each batch hold all that it knows."""

    sums: list[Tensor]


class SavedSums:
    """Every process's sums after some of the batches, in one safetensors file of the main process.

    Attributes:
        num_batches: global batches that the sums hold; the scoring goes on with the next one.

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

    def restore(self, scorer: HasSums) -> None:
        """Gives the scorer of this process what the file held."""
        for place, mine in enumerate(scorer.sums if self.num_batches else ()):
            mine.copy_(self._found[f"{world().rank}.{place}"])

    def step(self, scorer: HasSums) -> None:
        """After each batch: writes the file where it is time to. Raises StoppedError when the disk is full."""
        self.num_batches += 1
        if self.num_batches % self._every == 0:
            sums = world().gather_on_main([total.cpu() for total in scorer.sums])
            world().from_main(lambda: self._write(sums))

    def _write(self, sums: Sequence[Sequence[Tensor]]) -> None:
        tensors = {f"{rank}.{place}": total for rank, own in enumerate(sums) for place, total in enumerate(own)}
        about = {"header": self._header, "num_batches": self.num_batches}
        with room_for(self._path), atomic(self._path) as partial:
            write_tensors(partial, tensors, about)

    def _read(self) -> tuple[int, dict[str, Tensor]]:
        if not self._path.exists():
            return 0, {}
        about, sums = read_tensors(self._path, ADVICE)
        if not {"header", "num_batches"} <= about.keys():
            raise UserError(self._path, f"cannot be read (no sums of scores); {ADVICE}")
        check_same(self._path, about["header"], self._header)
        return about["num_batches"], sums
