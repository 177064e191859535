"""The networks that a search looks at, and what is measured of them.

H hidden width, K kept neurons.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

from torch import Tensor

from amp.pruning.measure.held_out import Look
from amp.pruning.measure.journal import Journal
from amp.pruning.recovery import Recovery
from amp.pruning.refit import Compensation
from amp.towers import Tower
from amp.towers.mlps.slots import check_scores


class Entropy(Protocol):
    """What a search asks of `HeldOutEntropy`."""

    num_batches: int
    cost: dict[str, int]

    def measure(self, block: int, batches: range) -> list[float]: ...

    def charge(self, block: int, batches: range) -> None: ...

    def look(self) -> Look: ...

    def features(self) -> list[Tensor]: ...


def rank(score_H: Tensor) -> Tensor:
    """Indices (H,) by score, highest first; ties go to the lower index."""
    return score_H.cpu().sort(descending=True, stable=True).indices


def top_neurons(score_H: Tensor, width: int) -> Tensor:
    """Indices (K,) of the `width` highest scores, ascending; ties go to the lower index."""
    return rank(score_H)[:width].sort().values


class NarrowedNetworks:
    """The networks that searches look at: a dense tower, and its blocks narrowed from the last on.

    Each batch of each network is measured once.

    Args:
        scores: one a unit, for each of this tower's `units`.
        held_out: measures `tower` as it is at the moment.
        journal: what is measured is written there, and what stands there is not measured again.
        compensation: refits what is sliced for good; with `in_search` also every network that is measured.
        open_recovery: -> the recovery of the tower, opened while it is dense; None: there is none.
    Raises:
        UserError: the scores are not one finite number a neuron.
    """

    def __init__(
        self,
        tower: Tower,
        scores: Sequence[Tensor],
        held_out: Entropy,
        journal: Journal,
        compensation: Compensation | None = None,
        in_search: bool = True,
        open_recovery: Callable[[], Recovery] | None = None,
    ) -> None:
        check_scores(tower.units, scores)
        self.tower, self.held_out = tower, held_out
        self._compensation, self._in_search = compensation, in_search
        self.scores, self.journal, self.open_recovery = scores, journal, open_recovery
        self._seen: dict[tuple[int, ...], int] = {}

    @contextmanager
    def narrowed(self, block: int, width: int) -> Iterator[None]:
        """Within the block of code, one with only its top `width` neurons: for a probe, and for a settled block."""
        slot = self.tower.slots[block]
        compensator = self._compensation.of(block) if self._compensation and self._in_search else None
        with slot.narrowed(top_neurons(self.scores[block], width)):
            if compensator is not None:
                compensator.apply(slot, width)
                del compensator  # Its matrices need not stay as long as the block is narrow.
            yield

    def entropies(self, block: int, width: int, count: int) -> list[float]:
        """Of the first `count` batches, where `block` has `width` neurons and those before it are dense."""
        widths = self.tower.widths
        whole, widths[block] = widths[block], width
        network = tuple(widths)
        missing = range(self._seen.get(network, 0), count)
        known = min(count, len(self.journal[network]))
        if missing.start < known:
            self.held_out.charge(block, range(missing.start, known))
        if known < count:
            with self.narrowed(block, width) if width != whole else nullcontext():
                self.journal.add(network, self.held_out.measure(block, range(known, count)))
        self._seen[network] = max(count, missing.start)
        return self.journal[network][:count]

    @property
    def seen_as_kept(self) -> bool:
        """Whether a network is measured with the compensation that it is kept with."""
        return self._compensation is None or (self._in_search and not self._compensation.sees_whole)

    def keep(self, counts: Sequence[int]) -> tuple[list[list[int]], list[dict[str, float]]]:
        """Slices the tower for good: `keep_units`."""
        return keep_units(self.tower, self.scores, counts, self._compensation)


def keep_units(
    tower: Tower, scores: Sequence[Tensor], counts: Sequence[int], compensation: Compensation | None
) -> tuple[list[list[int]], list[dict[str, float]]]:
    """Slices a dense tower for good, last block first, or as its compensation does.

    Args:
        scores, counts: for each of the tower's `units`.
    Returns:
        the kept neurons of every block, and with compensation the errors of every MLP's output.
    """
    kept_K = [top_neurons(score_U, count) for score_U, count in zip(scores, counts, strict=True)]
    units = tower.units
    neurons = [indices.tolist() for slot, indices in zip(units, kept_K, strict=True) if slot in tower.slots]
    if compensation is not None and compensation.sees_whole:
        return neurons, compensation.refit_whole(tower, kept_K)
    errors = []
    for place in reversed(range(len(units))):
        slot = units[place]
        compensator = compensation.of(place) if compensation else None
        slot.keep(kept_K[place])
        if compensator is not None:
            if slot in tower.slots:
                errors.append(compensator.errors(slot.hidden_width))
            compensator.apply(slot, slot.hidden_width)
    return neurons, errors[::-1]
