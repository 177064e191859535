"""A sequential test: each measurement uses only as many batches as its decision needs.

Most probes of a block take few batches once those next to them are known well, since one tells of the other (see
`_estimate`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtr, stdtrit

from amp.pruning.search._estimate import FIRST_LOOK, Estimate, estimates
from amp.pruning.search._interface import Judge, Search, Series
from amp.settings.prune import SearchSettings

GROWTH = 16  # a look for every sixteenth batch more
ENOUGH = 0.8  # of the most batches; beyond, a decision saves little and errs as often: the rest is measured too
HOPE = 0.25  # of the error: what a next step may hope to bring it to
# Of `Race`: confidence, tolerance as a share of entropy_increase, steps, sure, most.
PRESETS = {"strict": (3.0, 0.0, 1.0, 2.5, 1.0), "fast": (2.5, 0.2, 0.0, 0.0, 0.25)}


@dataclass(frozen=True)
class Race:
    """When a probe is decided.

    Attributes:
        population: batches there are, N.
        confidence: standard errors between the estimate and a limit.
        tolerance: nats around a limit in which either answer is right.
        steps: of the widths around the upper limit, in which either answer is right, but for `sure`.
        sure: standard errors between the estimate and the upper limit in any case.
        most: share of the batches at which a probe is decided, however near the limit it is.
    """

    population: int
    confidence: float
    tolerance: float = 0.0
    steps: float = 0.0
    sure: float = 0.0
    most: float = 1.0

    @property
    def end(self) -> int:
        """Batches at most."""
        return max(min(FIRST_LOOK, self.population), round(self.most * self.population))

    def decide(
        self, probe: Series, reference: Series, others: Sequence[Series], low: float, high: float, step: float = 0.0
    ) -> float:
        """As of `Judge`."""
        count = min(FIRST_LOOK, self.population)
        while True:
            reference.extend(count)
            probe.extend(count)
            found = list(estimates(probe, reference, others, self.population))
            if len(probe) == self.population:
                return found[0].value
            best = min(found, key=self._bound)
            allowed = self._allowed(best, low, high, step)
            if best.error <= allowed or len(probe) >= self.end:
                return best.value
            wanted = max(allowed, HOPE * best.error) ** 2
            plan = min(found, key=lambda one: one.cost(wanted))
            n, m = plan.counts(wanted)
            known = sum(map(len, plan.controls))
            for control in plan.controls:
                control.extend(self._rounded(min(m, _next(len(control)))))
            stuck = sum(map(len, plan.controls)) == known
            count = self._rounded(min(max(n, count + stuck), _next(count)))

    def _rounded(self, count: int) -> int:
        return count if count <= ENOUGH * self.end else self.end

    def _bound(self, one: Estimate) -> float:
        return one.error * _quantile(self.confidence, one.degrees)

    def _allowed(self, one: Estimate, low: float, high: float, step: float) -> float:
        """The standard error at which the estimate decides, in nats."""
        below, above = abs(one.value - low), abs(one.value - high)
        gap = min(below, above + self.steps * step) + self.tolerance
        allowed = gap / _quantile(self.confidence, one.degrees)
        return min(allowed, above / _quantile(self.sure, one.degrees)) if self.sure else allowed


def judge(settings: SearchSettings, num_batches: int, entropy_increase: float, block: int, num_blocks: int) -> Judge:
    """A race as the preset says; with more batches at most where one is cheap.

    A batch passes the blocks from this one on, and the error of the whole size is least for its cost where accuracy
    goes with the root of that number.
    """
    confidence, share, steps, sure, most = PRESETS[settings.preset]
    share = share if settings.tolerance is None else settings.tolerance
    passed = 2 * (num_blocks - block) / (num_blocks + 1)
    most = most ** math.sqrt(passed)
    return Race(num_batches, settings.confidence or confidence, share * entropy_increase, steps, sure, most)


SEARCH = Search(keeps_inputs=True, few_batches=True, judge=judge)


def _quantile(errors: float, degrees: float) -> float:
    """Standard errors that are as unlikely at few degrees of freedom as `errors` of a normal."""
    return float(-stdtrit(degrees, ndtr(-errors)))


def _next(count: int) -> int:
    return count + max(1, count // GROWTH)
