"""What a search measured, appended line by line, so that a killed one goes on after its last measurement."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amp.run.files import atomic, room_for
from amp.run.identity import check_same, first_difference
from amp.run.sealed import append_line, read_first_line, read_lines
from amp.run.world import world

Network = tuple[int, ...]
ADVICE = "delete the file to start the search again"


class Journal:
    """Entropies of the first batches of networks, each known by the widths of all its blocks.

    A file of JSON lines: a header that says of which run, then `{"widths", "start", "entropies"}` for each measurement,
    and `{"widths", "share"}` for each size that a clock has measured.
    The main process reads and writes it; all processes see the same values.

    Args:
        path: None keeps nothing; the file comes with the first measurement.
        header: of the run, with all that decides a measurement or a decision.
        thresholds: of the search, in nats; may be fewer than the journal's, since each can be decided from it alone.
        num_batches: held-out batches that there are; None: any number.
    Raises:
        UserError: the file is of another run, or damaged before its last line.
    """

    def __init__(
        self,
        path: Path | None = None,
        header: Mapping[str, Any] | None = None,
        thresholds: Sequence[float] = (),
        num_batches: int | None = None,
    ) -> None:
        self._path = path
        self._header: dict[str, Any] = {}
        self._known: dict[Network, list[float]] = {}
        self._sizes: dict[Network, float] = {}
        if path is not None and header is not None:
            self._header = _about(header, thresholds)
            self._known, self._sizes = world().from_main(lambda: _open(path, self._header, num_batches))

    def __getitem__(self, network: Network) -> list[float]:
        """Its entropies on the first batches, in nats; maybe none."""
        return self._known.get(network, [])

    @property
    def file(self) -> Path | None:
        """Where anything is kept."""
        return self._path if self._known or self._sizes else None

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
        path = self._path
        if path is not None:
            world().from_main(lambda: _append(path, self._header, line))


def _append(path: Path, header: Mapping[str, Any], line: Mapping[str, Any]) -> None:
    """The header comes with the first line and the file's name, so that no kill can part them."""
    with room_for(path):
        if path.exists():
            append_line(path, line)
            return
        with atomic(path) as partial:
            append_line(partial, header)
            append_line(partial, line)


def _open(
    path: Path, header: dict[str, Any], num_batches: int | None
) -> tuple[dict[Network, list[float]], dict[Network, float]]:
    """What a journal holds, if there is one."""
    known: dict[Network, list[float]] = {}
    sizes: dict[Network, float] = {}
    if not path.exists():
        return known, sizes

    def take(number: int, entry: dict[str, Any]) -> None:
        if number == 0:
            check_same(path, entry, _with_thresholds_of(entry, header))
        elif "share" in entry:
            sizes[_network(entry)] = _finite([entry["share"]])[0]
        else:
            values = known.setdefault(_network(entry), [])
            if entry["start"] != len(values):
                raise ValueError("lines before it are missing")
            values += _finite(entry["entropies"])
            if num_batches is not None and len(values) > num_batches:
                raise ValueError(f"{len(values)} entropies for {num_batches} held-out batches")

    read_lines(path, take, ADVICE)
    return known, sizes


def _network(entry: Mapping[str, Any]) -> Network:
    widths = entry["widths"]
    if not all(type(width) is int and width >= 0 for width in widths):
        raise ValueError("a width is not a whole number")
    return tuple(widths)


def _finite(values: Sequence[Any]) -> list[float]:
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError("a value is not a finite number")
    return [float(value) for value in values]


def other_search(path: Path, header: Mapping[str, Any], thresholds: Sequence[float]) -> tuple[str, Any, Any] | None:
    """In what the journal `path`, if there is one, differs from the search that `Journal` would open with these.

    Raises:
        UserError: its first line is damaged.
    """
    found: list[tuple[str, Any, Any] | None] = [None]

    def take(number: int, entry: dict[str, Any]) -> None:
        found[0] = first_difference(entry, _with_thresholds_of(entry, _about(header, thresholds)))

    if path.exists():
        read_first_line(path, take, ADVICE)
    return found[0]


def _with_thresholds_of(entry: Mapping[str, Any], header: dict[str, Any]) -> dict[str, Any]:
    """The header with the journal's thresholds, where its own are among them."""
    theirs, settings = entry["settings"]["thresholds"], header["settings"]
    own = settings["thresholds"]
    return {**header, "settings": {**settings, "thresholds": theirs if set(own) <= set(theirs) else own}}


def _about(header: Mapping[str, Any], thresholds: Sequence[float]) -> dict[str, Any]:
    """The header with its thresholds in the place of the one of its settings."""
    own = {key: value for key, value in header["settings"]["prune"].items() if key != "entropy_increase"}
    return {**header, "settings": {**header["settings"], "prune": own, "thresholds": list(thresholds)}}
