"""How many batches a decision takes: a sequential test on differences that were measured on the same batches.

The batches of a search are a finite population, in an order that was shuffled once; those measured so far are a sample
of it without replacement. Widths of one block move the entropy of a batch alike, so what is known of one probe on many
batches tells of another on few (a control variate).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

FIRST_LOOK = 6  # batches; fewer say nothing of their own spread
GROWTH = 12  # a look for every twelfth batch more


@dataclass(frozen=True)
class Estimate:
    """Of a population's mean: its value, standard error, and the degrees of freedom of that error."""

    value: float
    error: float
    degrees: int


@dataclass(frozen=True)
class Race:
    """When a probe is decided.

    Attributes:
        population: batches there are.
        confidence: standard errors between the estimate and the limit; None measures all batches.
        tolerance: nats around the limit in which either answer is right.
    """

    population: int
    confidence: float | None = None
    tolerance: float = 0.0

    def looks(self) -> Iterator[int]:
        """Numbers of batches after which a decision is tried; the last is all of them."""
        count = FIRST_LOOK if self.confidence is not None else self.population
        while count < self.population:
            yield count
            count += max(1, count // GROWTH)
        yield self.population

    def decided(self, estimate: Estimate, low: float, high: float) -> bool:
        """Whether more batches would leave the answer, `low <= mean <= high`, as it is."""
        if estimate.error == 0 or self.confidence is None:
            return estimate.error == 0
        # As unlikely as `confidence` standard errors of a normal, at the few degrees of freedom there are.
        errors = float(-stdtrit(estimate.degrees, ndtr(-self.confidence)))
        margin = errors * estimate.error - self.tolerance
        return all(abs(estimate.value - limit) >= margin for limit in (low, high))

    def run(
        self,
        differences: Callable[[int], Sequence[float]],
        controls: Sequence[Sequence[float]],
        low: float,
        high: float,
    ) -> float:
        """The mean difference, as exactly as the decision `low <= mean <= high` needs it.

        Args:
            differences: count -> those of the first `count` batches.
            controls: differences of other probes, on the first batches too, each on as many as it took.
        """
        for count in self.looks():
            sample = differences(count)
            found = estimate(sample, controls, self.population)
            if self.decided(found, low, high):
                return found.value
        raise AssertionError("all batches leave no doubt")


def estimate(sample: Sequence[float], controls: Sequence[Sequence[float]], population: int) -> Estimate:
    """The population's mean from its first values: by themselves, or by regression on the control that tells most.

    With y = b x + e on the n common batches and x known on m > n of them, mean(y) = b mean_m(x) + mean_n(e), whose
    variance is b² var(x) (1/m - 1/N) + var(e) (1/n - 1/N).

    Args:
        sample: y, n >= 1 values of the first batches.
        controls: x, each of the first m batches.
        population: N.
    """
    y = np.asarray(sample)
    n = len(y)
    if n >= population or n < 3:
        return Estimate(math.fsum(sample) / n, 0.0 if n >= population else math.inf, 1)
    remaining = 1 / n - 1 / population
    best = Estimate(float(y.mean()), float(np.sqrt(y.var(ddof=1) * remaining)), n - 1)
    for control in controls:
        x = np.asarray(control)
        m = len(x)
        common = x[:n]
        spread = float(common.var())
        if m <= n or spread == 0:
            continue
        slope = float(np.mean((common - common.mean()) * (y - y.mean()))) / spread
        rest = y - y.mean() - slope * (common - common.mean())
        variance = float(rest @ rest) / (n - 2) * remaining + slope**2 * float(x.var(ddof=1)) * (1 / m - 1 / population)
        if variance < best.error**2:
            value = float(y.mean()) + slope * float(x.mean() - common.mean())
            best = Estimate(value, math.sqrt(variance), n - 2)
    return best
