"""What a probe has more than the network so far, estimated from a part of the batches, and how sure that is.

The batches of a search are a finite population, in an order that was shuffled once; those measured so far are a sample
of it without replacement. Narrow networks move the entropy of a batch alike, so that one that is known on many batches
tells of another that is known on few (a control variate).

n batches of a probe, m batches of its controls, N batches in all.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from amp.pruning.search._interface import Series

FIRST_LOOK = 20  # batches; fewer say little of their own spread
KURTOSIS = 7.0  # of batches' entropies, about; a normal's is 3
TINY = 1e-30


@dataclass(frozen=True)
class Estimate:
    """Of the mean over all N batches, from n of the probe's and m of its controls'.

    With y = b x + e: mean(y) = b mean_m(x) + mean_n(e), of variance shared (1/m - 1/N) + own (1/n - 1/N) + lever; the
    last is what the slope's own error makes of mean_m(x) - mean_n(x).
    """

    value: float
    own: float
    shared: float
    num_probe: int
    num_controls: int
    population: int
    degrees: float
    lever: float = 0.0
    controls: tuple[Series, ...] = ()

    @property
    def error(self) -> float:
        """Standard error of `value`."""
        n, m, total = self.num_probe, self.num_controls, self.population
        return math.sqrt(self.own * (1 / n - 1 / total) + self.shared * (1 / m - 1 / total) + self.lever)

    def counts(self, variance: float) -> tuple[int, int]:
        """The numbers of batches, of the probe and of its controls, that bring it to a variance at least cost."""
        room = variance + (self.own + self.shared) / self.population
        m = self.population
        if self.controls and self.own > 0:
            # The least n + weight m at which own / n + shared / m = room.
            m = math.ceil((self.shared + math.sqrt(self.own * self.shared / len(self.controls))) / room)
            m = min(max(m, self.num_controls), self.population)
        left = room - self.shared / m
        n = math.ceil(self.own / left) if left > 0 else self.population
        return min(max(n, self.num_probe), self.population), m

    def cost(self, variance: float) -> int:
        """Batches that are still to be measured, of the probe and of its controls."""
        n, m = self.counts(variance)
        return n - self.num_probe + sum(max(0, m - len(control)) for control in self.controls)


def estimates(probe: Series, reference: Series, others: Sequence[Series], population: int) -> Iterator[Estimate]:
    """From the common batches alone, and by controls that are known on as many.

    Few of them, lest the one of the least error be the one that underrates it: the nearest width, the network that
    is known best, and the next widths below and above together.

    Args:
        population: batches there are, N.
    """
    n, total = len(probe), population
    y = probe.values - reference.values[:n]
    spread = float(y.var(ddof=1)) if n > 1 else math.inf
    yield Estimate(math.fsum(y) / n, spread, 0.0, n, n, total, _degrees(n - 1))
    ready = sorted((one for one in others if len(one) >= n), key=lambda one: abs(math.log(one.width / probe.width)))
    if n < FIRST_LOOK or not ready:
        return
    sets: list[tuple[Series, ...]] = [(ready[0],)]
    if (longest := max(ready, key=len)) is not ready[0]:
        sets.append((longest,))
    sides = [next((one for one in ready if (one.width > probe.width) == above), None) for above in (False, True)]
    if sides[0] and sides[1]:
        sets.append((sides[0], sides[1]))
    for controls in sets:
        yield regress(y, controls, reference, total)


def regress(y: np.ndarray, controls: tuple[Series, ...], reference: Series, population: int) -> Estimate:
    """Least squares of y, known on the first n batches, on what controls that are known on n or more have beyond the
    reference."""
    n, m = len(y), min(len(one) for one in (*controls, reference))
    x = np.stack([control.values[:m] - reference.values[:m] for control in controls], axis=1)
    centred = x[:n] - x[:n].mean(axis=0)
    gram = centred.T @ centred
    # The ridge is for controls that are alike to the last digit.
    gram += 1e-9 * (np.trace(gram) + TINY) * np.eye(len(controls))
    slopes = np.linalg.solve(gram, centred.T @ (y - y.mean()))
    rest = y - y.mean() - centred @ slopes
    degrees = n - 1 - len(controls)
    own, shared = float(rest @ rest) / degrees, float((x @ slopes).var(ddof=1))
    shift = x.mean(axis=0) - x[:n].mean(axis=0)
    lever = own * float(shift @ np.linalg.solve(gram, shift))
    value = float(y.mean() + shift @ slopes)
    return Estimate(value, own, shared, n, m, population, _degrees(degrees), lever, (*controls, reference))


def _degrees(free: int) -> float:
    """Of freedom, of a variance that `free` deviations of that kurtosis tell."""
    return max(2.0, 2 * free / (KURTOSIS - 1))
