"""How many batches a decision takes: a sequential test on networks that were measured on the same batches.

The batches of a search are a finite population, in an order that was shuffled once; those measured so far are a sample
of it without replacement. Narrow networks move the entropy of a batch alike, so that one that is known on many batches
tells of another that is known on few (a control variate): most probes of a block take few batches once one of them,
and the network so far or one like it, are known well.

n batches of a probe, m batches of its controls, N batches in all.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

FIRST_LOOK = 8  # batches; fewer say nothing of their own spread
GROWTH = 8  # a look for every eighth batch more
TINY = 1e-30
HOPE = 0.25  # of the error: what a next step may hope to bring it to


class Series:
    """A network's entropies on the first batches, in nats.

    Args:
        measure: count -> those of the first `count` batches; None where no more can be had.
    """

    def __init__(self, measure: Callable[[int], Sequence[float]] | None, values: Any = ()) -> None:
        self.measure = measure
        self.values = np.asarray(values)

    def __len__(self) -> int:
        return len(self.values)

    def extend(self, count: int) -> None:
        """Makes it known on at least `count` batches, where it can be."""
        if self.measure and count > len(self):
            self.values = np.asarray(self.measure(count))


@dataclass(frozen=True)
class Fit:
    """An estimate of the mean over all N batches, from n of the probe's and m of its controls'.

    With y = b x + e: mean(y) = b mean_m(x) + mean_n(e), of variance shared (1/m - 1/N) + own (1/n - 1/N).
    """

    value: float
    own: float
    shared: float
    num_probe: int
    num_controls: int
    population: int
    degrees: int
    controls: tuple[Series, ...] = ()

    @property
    def error(self) -> float:
        """Standard error of `value`."""
        n, m, total = self.num_probe, self.num_controls, self.population
        return math.sqrt(self.own * (1 / n - 1 / total) + self.shared * (1 / m - 1 / total))

    def counts(self, variance: float) -> tuple[int, int]:
        """The numbers of batches, of the probe and of its controls, that bring it to a variance at least cost."""
        room = variance + (self.own + self.shared) / self.population
        most = min([self.population, *(len(control) for control in self.controls if not control.measure)])
        weight = sum(1 for control in self.controls if control.measure)
        m = most
        if weight and self.own > 0:
            # The least n + weight m at which own / n + shared / m = room.
            m = math.ceil((self.shared + math.sqrt(self.own * self.shared / weight)) / room)
            m = min(max(m, self.num_controls), most)
        left = room - self.shared / m
        n = math.ceil(self.own / left) if left > 0 else self.population
        return min(max(n, self.num_probe), self.population), m

    def cost(self, variance: float) -> int:
        """Batches that are still to be measured, of the probe and of its controls."""
        n, m = self.counts(variance)
        of_controls = sum(max(0, m - len(control)) for control in self.controls if control.measure)
        return n - self.num_probe + of_controls


@dataclass(frozen=True)
class Race:
    """When a probe is decided.

    Attributes:
        population: batches there are, N.
        confidence: standard errors between the estimate and the limit; None measures all batches.
        tolerance: nats around the limit in which either answer is right.
    """

    population: int
    confidence: float | None = None
    tolerance: float = 0.0

    def run(self, probe: Series, reference: Series, others: Sequence[Series], low: float, high: float) -> float:
        """What the probe has more than the reference, as exactly as `low <= mean <= high` needs it.

        Args:
            others: networks like them, known on some batches; those that can be are extended where that is cheaper.
        """
        count = min(FIRST_LOOK, self.population) if self.confidence else self.population
        while True:
            reference.extend(count)
            probe.extend(count)
            fits = list(self.fits(probe, reference, others))
            best = min(fits, key=lambda fit: fit.error)
            if self.confidence is None or best.num_probe == self.population:
                return best.value
            # As unlikely as `confidence` standard errors of a normal, at the few degrees of freedom there are.
            errors = float(-stdtrit(best.degrees, ndtr(-self.confidence)))
            gap = min(abs(best.value - low), abs(best.value - high)) + self.tolerance
            if gap >= errors * best.error:
                return best.value
            wanted = max(gap / errors, HOPE * best.error) ** 2
            plan = min(fits, key=lambda fit: fit.cost(wanted))
            n, m = plan.counts(wanted)
            known = sum(map(len, plan.controls))
            for control in plan.controls:
                control.extend(min(m, _next(len(control))))
            stuck = sum(map(len, plan.controls)) == known
            count = min(max(n, count + stuck), _next(count))

    def fits(self, probe: Series, reference: Series, others: Sequence[Series]) -> Iterator[Fit]:
        """The estimate from the common batches alone, and those by pairs of controls that are known on as many."""
        n, total = min(len(probe), len(reference)), self.population
        y = probe.values[:n] - reference.values[:n]
        yield Fit(math.fsum(y) / n, float(y.var(ddof=1)) if n > 1 else math.inf, 0.0, n, n, total, max(1, n - 1))
        inside = sorted((one for one in others if one.measure and len(one) >= n), key=len)[-3:]
        outside = sorted((one for one in others if not one.measure and len(one) > n), key=len)[-2:]
        if self.confidence is None or n < FIRST_LOOK:
            return
        for first in inside or outside[-1:]:
            for second in (reference, *outside):
                if second is not first:
                    yield regress(y, (first, second), total)


def regress(y: np.ndarray, controls: tuple[Series, ...], population: int) -> Fit:
    """Least squares of y, known on the first n batches, on controls that are known on n or more."""
    n, m = len(y), min(len(control) for control in controls)
    x = np.stack([control.values[:m] for control in controls], axis=1)
    centred = x[:n] - x[:n].mean(axis=0)
    gram = centred.T @ centred
    # The ridge is for controls that are alike to the last digit.
    slopes = np.linalg.solve(gram + 1e-9 * (np.trace(gram) + TINY) * np.eye(len(controls)), centred.T @ (y - y.mean()))
    rest = y - y.mean() - centred @ slopes
    degrees = n - 1 - len(controls)
    told = x @ slopes
    value = float(y.mean() + told.mean() - told[:n].mean())
    return Fit(value, float(rest @ rest) / degrees, float(told.var(ddof=1)), n, m, population, degrees, controls)


def _next(count: int) -> int:
    return count + max(1, count // GROWTH)
