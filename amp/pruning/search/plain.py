"""The published search (AMP, arXiv 2603.08100, section 3): every measurement runs every block on every batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amp.pruning.search._interface import Judge, Search, Series
from amp.settings.prune import SearchSettings


@dataclass(frozen=True)
class AllBatches:
    """Decides on the mean over all batches.

    Attributes:
        population: batches there are, N.
    """

    population: int

    def decide(
        self, probe: Series, reference: Series, others: Sequence[Series], low: float, high: float, step: float = 0.0
    ) -> float:
        """As of `Judge`."""
        reference.extend(self.population)
        probe.extend(self.population)
        return math.fsum(probe.values - reference.values[: len(probe)]) / len(probe)


def judge_on_all(
    settings: SearchSettings, num_batches: int, entropy_increase: float, block: int, num_blocks: int
) -> Judge:
    """Of any block."""
    return AllBatches(num_batches)


SEARCH = Search(keeps_inputs=False, few_batches=False, judge=judge_on_all)
