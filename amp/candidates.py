"""The networks that a search looks at, and what is measured of them.

H hidden width, K kept neurons.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

from torch import Tensor

from amp.journal import Journal
from amp.towers import Tower


class Meter(Protocol):
    """What a search asks of `amp.meter.EntropyMeter`."""

    num_batches: int

    def measure(self, block: int, batches: range) -> list[float]: ...

    def charge(self, block: int, batches: range) -> None: ...


def top_neurons(score_H: Tensor, width: int) -> Tensor:
    """Indices (K,) of the `width` highest scores, ascending; ties go to the lower index."""
    return score_H.cpu().sort(descending=True, stable=True).indices[:width].sort().values


class Candidates:
    """The networks that searches look at: a dense tower, and its blocks narrowed from the last on.

    Each batch of each network is measured once.

    Args:
        scores: (H,) a block, of this tower.
        meter: measures `tower` as it is at the moment.
        journal: what is measured is written there, and what stands there is not measured again.
    """

    def __init__(self, tower: Tower, scores: Sequence[Tensor], meter: Meter, journal: Journal) -> None:
        self.tower, self.meter = tower, meter
        self._scores, self._journal = scores, journal
        self._seen: dict[tuple[int, ...], int] = {}

    @contextmanager
    def narrowed(self, block: int, width: int) -> Iterator[None]:
        """Within the block of code, one with only its top `width` neurons: for a probe, and for a settled block."""
        with self.tower.slots[block].narrowed(top_neurons(self._scores[block], width)):
            yield

    def entropies(self, block: int, width: int, count: int) -> list[float]:
        """Of the first `count` batches, where `block` has `width` neurons and those before it are dense."""
        widths = self.tower.widths
        whole, widths[block] = widths[block], width
        network = tuple(widths)
        missing = range(self._seen.get(network, 0), count)
        known = min(count, len(self._journal[network]))
        if missing.start < known:
            self.meter.charge(block, range(missing.start, known))
        if known < count:
            with self.narrowed(block, width) if width != whole else nullcontext():
                self._journal.add(network, self.meter.measure(block, range(known, count)))
        self._seen[network] = max(count, missing.start)
        return self._journal[network][:count]

    def mean(self) -> float:
        """Entropy of the tower as it is, over all batches."""
        values = self.meter.measure(0, range(self.meter.num_batches))
        return math.fsum(values) / len(values)

    def keep(self, widths: Sequence[int]) -> list[list[int]]:
        """Slices the tower for good; the kept neurons of every block."""
        kept = []
        for slot, score_H, width in zip(self.tower.slots, self._scores, widths, strict=True):
            indices_K = top_neurons(score_H, width)
            slot.keep(indices_K)
            kept.append([int(index) for index in indices_K])
        return kept
