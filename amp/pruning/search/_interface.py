"""What a search is: which inputs it keeps, and who judges its probes.

N batches in all, n of a network that are measured so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from amp.settings.prune import SearchSettings


class Series:
    """A network's entropies on the first batches, in nats.

    Args:
        width: of the block that is searched.
        measure: count -> those of the first `count` batches.
    """

    def __init__(self, width: int, measure: Callable[[int], Sequence[float]]) -> None:
        self.width = width
        self._measure = measure
        self.values = np.zeros(0)

    def __len__(self) -> int:
        return len(self.values)

    def frozen(self) -> "Series":
        """What is known of it now, and no more."""
        values = self.values.tolist()
        series = Series(self.width, lambda count: values)
        series.extend(len(values))
        return series

    def extend(self, count: int) -> None:
        """Makes it known on at least `count` batches, where it can be measured."""
        if count > len(self):
            self.values = np.asarray(self._measure(count))


class Judge(Protocol):
    """Measures a probe of one block until it can be told whether it is accepted."""

    def decide(
        self, probe: Series, reference: Series, others: Sequence[Series], low: float, high: float, step: float = 0.0
    ) -> float:
        """What the probe has more than the reference, in nats, as exactly as `low <= mean <= high` needs it.

        Args:
            others: networks like them, known on some batches; they are extended where that is cheaper.
            step: by how much, at `high`, the next greater width has less than a width, in nats; 0: not known.
        """
        ...


@dataclass(frozen=True)
class Search:
    """One way to search.

    Attributes:
        keeps_inputs: the inputs of blocks are kept, so that those before the one under search are not run again.
        few_batches: decides on some of the batches, so that it is cheap to try.
        judge: (settings, number of batches, entropy_increase in nats, block, number of blocks) -> of that block.
    """

    keeps_inputs: bool
    few_batches: bool
    judge: Callable[[SearchSettings, int, float, int, int], Judge]
