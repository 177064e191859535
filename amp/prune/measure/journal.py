"""What a search measured, appended line by line, so that a killed one goes on after its last measurement."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amp.errors import UserError
from amp.run.files import atomic
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
        header: of `amp.runs.describe`, with all that decides a measurement or a decision.
        thresholds: of the search, in nats; may be fewer than the journal's, since each can be decided from it alone.
    Raises:
        UserError: the file is of another run, or damaged before its last line.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any], thresholds: Sequence[float]) -> None:
        self._path = path
        self._known: dict[Network, list[float]] = {}
        self._shares: dict[Network, float] = {}
        if path is not None:
            self._known, self._shares = world().from_main(lambda: _open(path, _about(header, thresholds)))

    def __getitem__(self, network: Network) -> list[float]:
        """Its entropies on the first batches, in nats; maybe none."""
        return self._known.get(network, [])

    def add(self, network: Network, entropies: Sequence[float]) -> None:
        """Durably appends those of the next batches."""
        known = self._known.setdefault(network, [])
        self._append({"widths": network, "start": len(known), "entropies": list(entropies)})
        known += entropies

    def share(self, network: Network, measure: Callable[[], float]) -> float:
        """What `measure` says of a network's size, asked once: a clock never gives the same number twice."""
        if network not in self._shares:
            self._shares[network] = measure()
            self._append({"widths": network, "share": self._shares[network]})
        return self._shares[network]

    def _append(self, line: dict[str, Any]) -> None:
        if self._path is not None and world().is_main:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _open(path: Path, header: dict[str, Any]) -> tuple[dict[Network, list[float]], dict[Network, float]]:
    """Starts a journal, or reads one and drops its last line where that was not written to the end."""
    if not path.exists():
        with atomic(path) as partial:
            partial.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}, {}
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    known: dict[Network, list[float]] = {}
    shares: dict[Network, float] = {}
    number = 1
    try:
        first, *lines = whole.splitlines()
        recorded = json.loads(first)
        for line in lines:
            number += 1
            entry = json.loads(line)
            if "share" in entry:
                shares[tuple(entry["widths"])] = float(entry["share"])
                continue
            values = known.setdefault(tuple(entry["widths"]), [])
            if entry["start"] != len(values):
                raise ValueError("lines are missing before it")
            values += map(float, entry["entropies"])
        wanted, others = header["settings"]["thresholds"], recorded["settings"]["thresholds"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(path, f"line {number} is damaged ({error}); delete the file to search anew") from None
    if set(wanted) <= set(others):
        header["settings"]["thresholds"] = others
    check_same(path, recorded, header)
    if len(whole) < len(text):
        os.truncate(path, len(whole.encode()))
    return known, shares


def _about(header: Mapping[str, Any], thresholds: Sequence[float]) -> dict[str, Any]:
    """The header with its thresholds in the place of the one of its settings."""
    own = {key: value for key, value in header["settings"]["prune"].items() if key != "entropy_increase"}
    return {**header, "settings": {**header["settings"], "prune": own, "thresholds": list(thresholds)}}
