"""Laws of the sequential test: what it decides is what all batches would have decided, at a part of the cost."""

import math

import numpy as np
import pytest

from amp.racing import Race, estimate

POPULATION = 400


class Sample:
    """The first batches' values, as many as asked for; remembers the last number."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.taken = values, 0

    def __call__(self, count: int) -> list[float]:
        assert self.taken < count <= POPULATION
        self.taken = count
        return self.values[:count]


def population(seed: int, mean: float, spread: float = 1.0) -> list[float]:
    return list(np.random.default_rng(seed).normal(mean, spread, POPULATION))


def test_all_batches_leave_no_doubt() -> None:
    values = population(0, 0.1)
    found = estimate(values, [], POPULATION)
    assert (found.value, found.error) == (math.fsum(values) / POPULATION, 0.0)
    assert Race(POPULATION, 4.0).decided(found, -math.inf, found.value)


def test_without_a_confidence_all_batches_are_measured_at_once() -> None:
    sample = Sample(population(0, 100.0))
    assert Race(POPULATION).run(sample, [], -math.inf, 0.0) == math.fsum(sample.values) / POPULATION
    assert list(Race(POPULATION).looks()) == [POPULATION]


@pytest.mark.parametrize("limit", [-1.0, -0.3, -0.1, 0.0, 0.1, 0.3, 1.0])
def test_decisions_are_those_of_all_batches_at_a_part_of_the_cost(limit: float) -> None:
    race, taken = Race(POPULATION, 4.0), []
    for seed in range(40):
        sample = Sample(population(seed, 0.0))
        found = race.run(sample, [], -math.inf, limit)
        assert (found <= limit) == (math.fsum(sample.values) / POPULATION <= limit)
        taken.append(sample.taken)
    if abs(limit) == 1.0:
        assert np.mean(taken) < POPULATION / 8


def test_a_fall_beyond_the_lower_limit_is_seen_too() -> None:
    sample = Sample(population(0, -5.0))
    assert Race(POPULATION, 4.0).run(sample, [], -1.0, 1.0) < -1.0
    assert sample.taken < POPULATION / 8


def test_within_the_tolerance_either_answer_is_right() -> None:
    samples = {tolerance: Sample(population(0, 0.05)) for tolerance in (1.0, 0.5, 0.0)}
    for tolerance, sample in samples.items():
        Race(POPULATION, 4.0, tolerance).run(sample, [], -math.inf, 0.0)
    assert samples[1.0].taken < samples[0.5].taken < samples[0.0].taken == POPULATION


def test_a_probe_that_is_known_well_tells_of_one_like_it() -> None:
    x = population(0, 0.3)
    y = [2 * a + b for a, b in zip(x, population(1, 0.0, 0.1), strict=True)]
    truth = math.fsum(y) / POPULATION
    alone, told = estimate(y[:20], [], POPULATION), estimate(y[:20], [x[:300], population(2, 0.0)[:300]], POPULATION)
    assert told.error < alone.error / 3
    assert abs(told.value - truth) < 4 * told.error
    # One known on no more batches, or constant, tells nothing.
    assert estimate(y[:20], [x[:20], [1.0] * 300], POPULATION) == alone


def test_the_error_is_honest() -> None:
    """Over many populations, about two thirds of the estimates lie within one standard error."""
    within = []
    for seed in range(300):
        values = population(seed, 0.0)
        found = estimate(values[:100], [], POPULATION)
        within.append(abs(found.value - math.fsum(values) / POPULATION) <= found.error)
    assert 0.6 < np.mean(within) < 0.76
