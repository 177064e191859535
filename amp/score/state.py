"""The sums of a scoring that is under way, kept in a file so that a killed one goes on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from amp.errors import UserError
from amp.models.folder import write_tensors
from amp.run.files import atomic, room_for
from amp.run.identity import check_same
from amp.run.world import world


class Sums(Protocol):
    """What is kept of a scorer: tensors that grow with each batch."""

    sums: list[Tensor]


class ScoringState:
    """Every process's sums after some of the batches, in one safetensors file of the main process.

    Attributes:
        num_batches: global batches that the sums hold; the scoring goes on with the next one.

    Args:
        header: of `amp.runs.describe`, with all that decides the scores.
        every: batches between two writings.
    Raises:
        UserError: the file is of another run, or of another number of processes, or cannot be read.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], every: int) -> None:
        self._path, self._every = path, every
        self._header = {**header, "settings": {**header["settings"], "processes": world().size}}
        self.num_batches, self._found = world().from_main(self._read)

    def restore(self, scorer: Sums) -> None:
        """Gives the scorer of this process what the file held."""
        if self.num_batches == 0:
            return
        for mine, found in zip(scorer.sums, self._found[world().rank], strict=True):
            mine.copy_(found)

    def step(self, scorer: Sums) -> None:
        """After each batch: writes the file where it is time to. Raises StoppedError when the disk is full."""
        self.num_batches += 1
        if self.num_batches % self._every == 0:
            states = world().gather_objects([total.cpu() for total in scorer.sums])
            world().from_main(lambda: self._write(states))

    def _write(self, states: Sequence[Sequence[Tensor]]) -> None:
        tensors = {f"{rank}.{i}": total for rank, state in enumerate(states) for i, total in enumerate(state)}
        about = {"header": self._header, "num_batches": self.num_batches}
        with room_for(self._path), atomic(self._path) as partial:
            write_tensors(partial, tensors, {"amp": json.dumps(about)})

    def _read(self) -> tuple[int, list[list[Tensor]]]:
        if not self._path.exists():
            return 0, []
        try:
            with safe_open(self._path, framework="pt") as file:
                about = json.loads(file.metadata()["amp"])
                header, num_batches = about["header"], int(about["num_batches"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(self._path, f"cannot be read ({error}); delete it to score anew") from None
        check_same(self._path, header, self._header)
        places, size = len(tensors) // world().size, world().size
        return num_batches, [[tensors[f"{rank}.{place}"] for place in range(places)] for rank in range(size)]
