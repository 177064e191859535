"""How many batches a decision takes: a sequential test on networks that were measured on the same batches.

The batches of a search are a finite population, in an order that was shuffled once; those measured so far are a sample
of it without replacement. Narrow networks move the entropy of a batch alike, so that one that is known on many batches
tells of another that is known on few (a control variate): most probes of a block take few batches once those next to
them are known well.

n batches of a probe, m batches of its controls, N batches in all.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

FIRST_LOOK = 20  # batches; fewer say little of their own spread
GROWTH = 16  # a look for every sixteenth batch more
ENOUGH = 0.8  # of the most batches; beyond, a decision saves little and errs as often: the rest is measured too
KURTOSIS = 7.0  # of batches' entropies, about; a normal's is 3
TINY = 1e-30
HOPE = 0.25  # of the error: what a next step may hope to bring it to


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


@dataclass(frozen=True)
class Fit:
    """An estimate of the mean over all N batches, from n of the probe's and m of its controls'.

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


@dataclass(frozen=True)
class Race:
    """When a probe is decided.

    Attributes:
        population: batches there are, N.
        confidence: standard errors between the estimate and a limit; None measures all batches.
        tolerance: nats around a limit in which either answer is right.
        steps: of the widths around the upper limit, in which either answer is right, but for `sure`.
        sure: standard errors between the estimate and the upper limit in any case.
        most: share of the batches at which a probe is decided, however near the limit it is.
    """

    population: int
    confidence: float | None = None
    tolerance: float = 0.0
    steps: float = 0.0
    sure: float = 0.0
    most: float = 1.0

    @property
    def end(self) -> int:
        """Batches at most."""
        return max(min(FIRST_LOOK, self.population), round(self.most * self.population))

    def run(
        self, probe: Series, reference: Series, others: Sequence[Series], low: float, high: float, step: float = 0.0
    ) -> float:
        """What the probe has more than the reference, as exactly as `low <= mean <= high` needs it.

        Args:
            others: networks like them, known on some batches; they are extended where that is cheaper.
            step: by how much, at `high`, the next greater width has less than a width, in nats; 0: not known.
        """
        count = min(FIRST_LOOK, self.population) if self.confidence else self.population
        while True:
            reference.extend(count)
            probe.extend(count)
            fits = list(self.fits(probe, reference, others))
            if self.confidence is None or len(probe) == self.population:
                return fits[0].value
            best = min(fits, key=self._bound)
            allowed = self._allowed(best, low, high, step)
            if best.error <= allowed or len(probe) >= self.end:
                return best.value
            wanted = max(allowed, HOPE * best.error) ** 2
            plan = min(fits, key=lambda fit: fit.cost(wanted))
            n, m = plan.counts(wanted)
            known = sum(map(len, plan.controls))
            for control in plan.controls:
                control.extend(self._rounded(min(m, _next(len(control)))))
            stuck = sum(map(len, plan.controls)) == known
            count = self._rounded(min(max(n, count + stuck), _next(count)))

    def _rounded(self, count: int) -> int:
        return count if count <= ENOUGH * self.end else self.end

    def _bound(self, fit: Fit) -> float:
        return fit.error * _quantile(self.confidence or 1.0, fit.degrees)

    def _allowed(self, fit: Fit, low: float, high: float, step: float) -> float:
        """The standard error at which the fit decides, in nats."""
        below, above = abs(fit.value - low), abs(fit.value - high)
        gap = min(below, above + self.steps * step) + self.tolerance
        allowed = gap / _quantile(self.confidence or 1.0, fit.degrees)
        return min(allowed, above / _quantile(self.sure, fit.degrees)) if self.sure else allowed

    def fits(self, probe: Series, reference: Series, others: Sequence[Series]) -> Iterator[Fit]:
        """The estimate from the common batches alone, and those by controls that are known on as many.

        Few of them, lest the one of the least error be the one that underrates it: the nearest width, the network that
        is known best, and the next widths below and above together.
        """
        n, total = len(probe), self.population
        y = probe.values - reference.values[:n]
        spread = float(y.var(ddof=1)) if n > 1 else math.inf
        yield Fit(math.fsum(y) / n, spread, 0.0, n, n, total, _degrees(n - 1))
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


def regress(y: np.ndarray, controls: tuple[Series, ...], reference: Series, population: int) -> Fit:
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
    return Fit(value, own, shared, n, m, population, _degrees(degrees), lever, (*controls, reference))


def _degrees(free: int) -> float:
    """Of freedom, of a variance that `free` deviations of that kurtosis tell."""
    return max(2.0, 2 * free / (KURTOSIS - 1))


def _quantile(errors: float, degrees: float) -> float:
    """Standard errors that are as unlikely at few degrees of freedom as `errors` of a normal."""
    return float(-stdtrit(degrees, ndtr(-errors)))


def _next(count: int) -> int:
    return count + max(1, count // GROWTH)
