"""Laws of the width search, a pure function of a probe."""

import math
import random
from collections.abc import Callable

import pytest

from amp.pruning.bisection import Limits, WidthFound, search_width


def needs(width: int) -> Callable[[int], float]:
    """A monotone probe: within a limit of 1.0 from `width` neurons on."""
    return lambda probed: 0.5 + 0.5 * width / probed


def scripted(seed: int) -> Callable[[int], float]:
    """Any function of the width, monotone or not."""
    return lambda probed: random.Random(seed * 1_000_003 + probed).random()


@pytest.mark.parametrize("hidden_width", [64, 256, 4096, 6144, 8192])
def test_monotone_probe_gives_the_smallest_grid_width_within_the_limit(hidden_width: int) -> None:
    grid = hidden_width // 64
    for needed in {1, grid, grid + 1, hidden_width // 3, hidden_width // 2, 63 * grid}:
        found = search_width(needs(needed), hidden_width, Limits(1.0, steps=6))
        assert found.width == math.ceil(needed / grid) * grid
        assert found.value == needs(needed)(found.width)


@pytest.mark.parametrize("hidden_width", [64, 256, 6144])
@pytest.mark.parametrize("seed", range(20))
def test_six_probes_land_on_multiples_of_a_64th(hidden_width: int, seed: int) -> None:
    found = search_width(scripted(seed), hidden_width, Limits(0.5, steps=6))
    assert found.width % (hidden_width // 64) == 0
    assert len(found.probes) == 6
    assert all(width % (hidden_width // 64) == 0 for width, _ in found.probes)


@pytest.mark.parametrize("hidden_width", [2, 3, 7, 100, 171, 256, 6144])
@pytest.mark.parametrize("steps", [1, 3, 6, 20])
@pytest.mark.parametrize("seed", range(5))
def test_each_probe_is_the_middle_of_the_bounds_its_predecessors_left(hidden_width: int, steps: int, seed: int) -> None:
    found = search_width(scripted(seed), hidden_width, Limits(0.5, steps=steps))
    low, high, accepted = 0, hidden_width, None
    for width, entropy in found.probes:
        assert width == (low + high) // 2
        assert entropy == scripted(seed)(width)
        if entropy <= 0.5:
            high, accepted = width, entropy
        else:
            low = width
    assert (found.width, found.value) == (high, accepted)
    # All steps are used, unless no width was left to probe.
    assert len(found.probes) == steps or (high - low == 1 and len(found.probes) < steps)


def test_no_accepted_probe_keeps_all_neurons_and_has_no_entropy() -> None:
    found = search_width(lambda width: 2.0, 256, Limits(1.0, steps=6))
    assert (found.width, found.value) == (256, None)
    assert [width for width, _ in found.probes] == [128, 192, 224, 240, 248, 252]


@pytest.mark.parametrize("hidden_width", range(1, 20))
@pytest.mark.parametrize("accepts", [True, False])
def test_tiny_widths_never_reach_zero_nor_repeat_a_probe(hidden_width: int, accepts: bool) -> None:
    found = search_width(lambda width: 0.0 if accepts else 2.0, hidden_width, Limits(1.0, steps=32))
    probed = [width for width, _ in found.probes]
    assert len(set(probed)) == len(probed)
    assert all(1 <= width < hidden_width for width in probed)
    assert found.width == (1 if accepts else hidden_width)


def test_one_neuron_is_not_probed() -> None:
    assert search_width(lambda width: 0.0, 1, Limits(1.0, steps=6)) == WidthFound(1, None, ())


def test_a_probe_at_the_limit_is_accepted() -> None:
    assert search_width(lambda width: 1.0, 64, Limits(1.0, steps=1)) == WidthFound(32, 1.0, ((32, 1.0),))
    above = math.nextafter(1.0, 2.0)
    assert search_width(lambda width: above, 64, Limits(1.0, steps=1)) == WidthFound(64, None, ((32, above),))


def test_the_criterion_is_signed() -> None:
    # A network whose entropy fell is accepted, however far.
    assert search_width(lambda width: -100.0, 64, Limits(1.0, steps=6)).width == 1


def test_the_entropy_returned_is_the_accepted_widths_own() -> None:
    # Accepted at 128, refused at 64 and 96, accepted at 112, refused at 104 and 108: neither the last probe nor the
    # least entropy.
    entropies = {128: 0.1, 64: 2.0, 96: 2.0, 112: 0.9, 104: 2.0, 108: 2.0}
    found = search_width(entropies.__getitem__, 256, Limits(1.0, steps=6))
    assert (found.width, found.value) == (112, 0.9)
    assert found.probes == tuple(entropies.items())


def test_a_probe_that_is_not_a_number_is_refused() -> None:
    assert search_width(lambda width: math.nan, 256, Limits(1.0, steps=6)).width == 256


def test_the_search_is_pure() -> None:
    calls: list[int] = []

    def probe(width: int) -> float:
        calls.append(width)
        return scripted(3)(width)

    first = search_width(probe, 256, Limits(0.5, steps=6))
    assert calls == [width for width, _ in first.probes]
    assert search_width(probe, 256, Limits(0.5, steps=6)) == first


def test_an_exception_of_the_probe_passes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        search_width(lambda width: 1 / 0, 256, Limits(1.0, steps=6))
