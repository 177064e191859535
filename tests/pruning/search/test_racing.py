"""Laws of the sequential test: what it decides is what all batches would have decided, at a part of the cost."""

import math

import numpy as np
import pytest

from amp.pruning.search import Series
from amp.pruning.search._estimate import FIRST_LOOK, estimates
from amp.pruning.search.plain import AllBatches
from amp.pruning.search.racing import ENOUGH, Race

POPULATION = 400


def population(seed: int, mean: float, spread: float = 1.0) -> list[float]:
    return list(np.random.default_rng(seed).normal(mean, spread, POPULATION))


def known(values: list[float], count: int = 0, width: int = 64) -> Series:
    """A network of which some batches are measured, and more can be."""
    series = Series(width, lambda more: values[:more])
    series.extend(count)
    return series


NOTHING = [0.0] * POPULATION


def decide(race: Race, values: list[float], low: float, high: float, step: float = 0.0) -> tuple[float, int]:
    """The race's value and the batches it took of the probe, beside a reference of zeros."""
    probe = known(values)
    return race.decide(probe, known(NOTHING), [], low, high, step), len(probe)


def test_without_a_race_all_batches_are_measured_at_once() -> None:
    values, asked = population(0, 100.0), []

    def measure(count: int) -> list[float]:
        asked.append(count)
        return values[:count]

    found = AllBatches(POPULATION).decide(Series(64, measure), known(NOTHING), [], -math.inf, 0.0)
    assert found == math.fsum(values) / POPULATION
    assert asked == [POPULATION]


@pytest.mark.parametrize("limit", [-1.0, -0.3, -0.1, 0.0, 0.1, 0.3, 1.0])
def test_decisions_are_those_of_all_batches_at_a_part_of_the_cost(limit: float) -> None:
    taken = []
    for seed in range(40):
        values = population(seed, 0.0)
        found, count = decide(Race(POPULATION, 4.0), values, -math.inf, limit)
        assert (found <= limit) == (math.fsum(values) / POPULATION <= limit)
        taken.append(count)
    assert max(taken) <= POPULATION
    if abs(limit) == 1.0:
        assert np.mean(taken) < POPULATION / 6


def test_a_fall_beyond_the_lower_limit_is_seen_too() -> None:
    found, count = decide(Race(POPULATION, 4.0), population(0, -5.0), -1.0, 1.0)
    assert found < -1.0
    assert count < POPULATION / 6


def test_within_the_tolerance_either_answer_is_right() -> None:
    values = population(0, 0.02)
    taken = [decide(Race(POPULATION, 4.0, tolerance), values, -math.inf, 0.0)[1] for tolerance in (1.0, 0.5, 0.0)]
    assert taken[0] < taken[1] < taken[2]


def test_a_decision_late_in_the_race_takes_all_batches() -> None:
    """Where the mean lies on the limit, the last batches decide: stopping before them saves little and errs often."""
    taken = []
    for seed in range(60):
        values = population(seed, 0.0)
        mean = math.fsum(values) / POPULATION
        taken += [decide(Race(POPULATION, 2.5), values, -math.inf, mean + gap)[1] for gap in (-1e-3, 1e-3)]
    assert all(FIRST_LOOK <= count <= ENOUGH * POPULATION or count == POPULATION for count in taken)
    assert taken.count(POPULATION) > len(taken) / 2


def test_a_race_ends_at_the_share_of_the_batches_that_it_may_take() -> None:
    for most, end in ((0.25, 100), (0.5, 200), (0.01, FIRST_LOOK)):
        values = population(0, 0.0)
        mean = math.fsum(values) / POPULATION
        assert decide(Race(POPULATION, 3.0, most=most), values, -math.inf, mean)[1] == end
        assert decide(Race(POPULATION, 3.0, most=most), values, -math.inf, mean + 5.0)[1] == FIRST_LOOK


@pytest.mark.slow
def test_a_few_odd_batches_are_no_surprise() -> None:
    """Entropies have heavy tails: most batches say little, a few much. Early decisions allow for that."""
    wrong, trials = 0, 0
    for seed in range(150):
        values = list(np.random.default_rng(seed).standard_t(4, POPULATION))
        mean = math.fsum(values) / POPULATION
        for gap in (-0.3, -0.1, -0.03, 0.03, 0.1, 0.3):
            found, _ = decide(Race(POPULATION, 3.0), values, -math.inf, mean + gap)
            wrong, trials = wrong + ((found <= mean + gap) != (gap > 0)), trials + 1
    assert wrong / trials < 0.01


def test_a_network_that_cannot_be_measured_any_more_still_tells_of_others() -> None:
    base, one, two = alike(0)
    series = known(one, 100)
    frozen = series.frozen()
    series.extend(200)
    frozen.extend(200)
    assert (len(series), len(frozen)) == (200, 100)
    truth = math.fsum(two) / POPULATION - math.fsum(base) / POPULATION
    taken = []
    for others in ([], [known(one, POPULATION).frozen()]):
        probe = known(two)
        found = Race(POPULATION, 3.0).decide(probe, known(base, POPULATION), others, -math.inf, truth - 0.03)
        assert found > truth - 0.03
        taken.append(len(probe))
    assert taken[1] < taken[0] / 4


def alike(seed: int) -> tuple[list[float], list[float], list[float]]:
    """Entropies of the network so far, and of two narrow ones: batches differ much, the narrow ones little."""
    base = population(seed, 3.0, 2.0)
    shift = population(seed + 1000, 0.3)
    one = [a + b for a, b in zip(base, shift, strict=True)]
    two = [a + 1.5 * b + c for a, b, c in zip(base, shift, population(seed + 2000, 0.0, 0.05), strict=True)]
    return base, one, two


def test_a_probe_that_is_known_well_tells_of_one_like_it() -> None:
    alone, told = [], []
    for seed in range(30):
        base, one, two = alike(seed)
        truth = math.fsum(two) / POPULATION - math.fsum(base) / POPULATION
        limit = truth - 0.03
        for taken, others in ((alone, []), (told, [known(one, POPULATION, 32)])):
            probe, reference = known(two), known(base, POPULATION)
            found = Race(POPULATION, 4.0).decide(probe, reference, others, -math.inf, limit)
            assert (found <= limit) == (truth <= limit)
            taken.append(len(probe))
    assert np.mean(told) < np.mean(alone) / 4


def test_what_a_step_of_the_widths_makes_up_takes_fewer_batches() -> None:
    """Where a wrong answer gives the next width, two standard errors do; where it gives another one, four."""
    taken: dict[tuple[float, float], list[int]] = {}
    wrong = 0
    for seed in range(60):
        values = population(seed, 0.1)
        for step, sure in ((0.0, 0.0), (0.3, 2.0), (0.3, 3.0)):
            found, count = decide(Race(POPULATION, 4.0, steps=1.0, sure=sure), values, -math.inf, 0.0, step=step)
            taken.setdefault((step, sure), []).append(count)
            wrong += (step, sure) == (0.3, 2.0) and (found <= 0.0) != (math.fsum(values) <= 0.0)
    means = [np.mean(counts) for counts in taken.values()]
    assert means[1] < means[2] < means[0]
    assert wrong <= 6


@pytest.mark.parametrize(("few", "many"), [(20, 20), (24, 60), (60, 200)])
def test_the_errors_are_honest(few: int, many: int) -> None:
    """Over many populations, about two thirds of the estimates lie within one standard error; of the best, too."""
    within, best = [], []
    for seed in range(300):
        base, one, two = alike(seed)
        _, _, three = alike(seed + 5000)
        truth = math.fsum(two) / POPULATION - math.fsum(base) / POPULATION
        others = [known(one, many, 32), known(three, many, 128)]
        found = list(estimates(known(two, few), known(base, many), others, POPULATION))
        assert len(found) == 3
        good = [abs(one.value - truth) <= one.error for one in found]
        within.append(good)
        best.append(good[min(range(len(found)), key=lambda i: found[i].error)])
    for share in [*np.mean(within, axis=0), np.mean(best)]:
        assert 0.58 < share < 0.76
