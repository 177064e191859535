"""What a search measured, appended line by line, so that a killed one goes on after its last measurement."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amp.run.files import append_line, atomic, read_lines
from amp.run.identity import check_same
from amp.run.world import world

Network = tuple[int, ...]


class Journal:
    """Entropies of the first batches of networks, each known by the widths of all its blocks.

    A file of JSON lines: a header that says of which run, then `{"widths", "start", "entropies"}` for each measurement,
    and `{"widths", "share"}` for each size that a clock has measured.
    The main process reads and writes it; all processes see the same values.

    Args:
        path: None keeps nothing.
        header: of the run, with all that decides a measurement or a decision.
        thresholds: of the search, in nats; may be fewer than the journal's, since each can be decided from it alone.
    Raises:
        UserError: the file is of another run, or damaged before its last line.
    """

    def __init__(
        self, path: Path | None = None, header: Mapping[str, Any] | None = None, thresholds: Sequence[float] = ()
    ) -> None:
        self._path = path
        self._known: dict[Network, list[float]] = {}
        self._sizes: dict[Network, float] = {}
        if path is not None and header is not None:
            self._known, self._sizes = world().from_main(lambda: _open(path, _about(header, thresholds)))

    def __getitem__(self, network: Network) -> list[float]:
        """Its entropies on the first batches, in nats; maybe none."""
        return self._known.get(network, [])

    def add(self, network: Network, entropies: Sequence[float]) -> None:
        """Durably appends those of the next batches."""
        known = self._known.setdefault(network, [])
        self._append({"widths": network, "start": len(known), "entropies": list(entropies)})
        known += entropies

    def size(self, network: Network, measure: Callable[[], float]) -> float:
        """What `measure` says of a network's size, asked once: a clock never gives the same number twice."""
        if network not in self._sizes:
            self._sizes[network] = measure()
            self._append({"widths": network, "share": self._sizes[network]})
        return self._sizes[network]

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._path is not None and world().is_main:
            append_line(self._path, line)


def _open(path: Path, header: dict[str, Any]) -> tuple[dict[Network, list[float]], dict[Network, float]]:
    """Starts a journal, or reads one."""
    known: dict[Network, list[float]] = {}
    sizes: dict[Network, float] = {}
    if not path.exists():
        # The header comes with the file's name, so that no kill can part them.
        with atomic(path) as partial:
            append_line(partial, header)
        return known, sizes

    def take(number: int, entry: dict[str, Any]) -> None:
        if number == 0:
            thresholds = entry["settings"]["thresholds"]
            if set(header["settings"]["thresholds"]) <= set(thresholds):
                header["settings"]["thresholds"] = thresholds
            check_same(path, entry, header)
        elif "share" in entry:
            sizes[tuple(entry["widths"])] = float(entry["share"])
        else:
            values = known.setdefault(tuple(entry["widths"]), [])
            if entry["start"] != len(values):
                raise ValueError("lines are missing before it")
            values += map(float, entry["entropies"])

    read_lines(path, take, "delete the file to search anew")
    return known, sizes


def _about(header: Mapping[str, Any], thresholds: Sequence[float]) -> dict[str, Any]:
    """The header with its thresholds in the place of the one of its settings."""
    own = {key: value for key, value in header["settings"]["prune"].items() if key != "entropy_increase"}
    return {**header, "settings": {**header["settings"], "prune": own, "thresholds": list(thresholds)}}
