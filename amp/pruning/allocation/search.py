"""A search with one limit on the entropy increase: the given limit, or the one that leads to the target size."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

from amp.pruning.blocks import WidthsFound, search_blocks, searched_blocks
from amp.pruning.doubt import warn_of_grid
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.progress import SearchProgress
from amp.pruning.search import trial_of
from amp.pruning.size import (
    CLOSE,
    UNITS,
    Grid,
    RelativeSize,
    Widths,
    check_reach,
    meet,
    out_of_reach,
    say_if_far,
    settle,
    stretched,
)
from amp.run.console import detail
from amp.settings.prune import SearchSettings

# Thresholds in nats that are tried, how many, and how near to the size is near enough.
SMALLEST, LARGEST, TRIALS, NEAR = 1e-7, 1e3, 12, 0.01
ABOUT = 8  # searches that a size takes
FACTORS = (0.5, 2.0)  # by which widths are multiplied where no threshold gives the size


def allocate(
    networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize | None
) -> tuple[Widths, WidthsFound]:
    """The widths that a search finds under `settings.entropy_increase` or, if asked, for a size; and all it found."""
    target = settings.target.left
    if target is None:
        found = search_blocks(networks, settings, settings.entropy_increase)
        warn_of_grid(found.widths, networks.tower.widths, settings)
        return found.widths, found
    assert size_of is not None
    searched: list[WidthsFound] = []

    def of_size(size: RelativeSize) -> tuple[Widths, WidthsFound]:
        if not searched:
            searched.append(find_size(networks, settings, size, target))
        met = _scaled(searched[0], networks, settings, size, target)
        return met.widths, met

    widths, found = meet(of_size, size_of, settings.target)
    found.share = size_of.measure(widths)
    return widths, found


def find_size(
    networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize, target: float
) -> WidthsFound:
    """The widths of the threshold whose network has the share `target` of the dense one's size, or comes closest to it.

    Thresholds are tried on few batches; then the search that was asked for runs at the one found, and once or twice
    more where its own size is more than 1 % off.

    Raises:
        UserError: the size is out of reach.
    """
    check_reach(Grid.of(networks.tower, settings), size_of, settings.target, networks.journal)
    trial, few = trial_of(settings, networks.held_out.num_batches)
    unit = UNITS[settings.target.asked[0]] if settings.target.asked else "size"
    tried: dict[float, float] = {}
    threshold = settings.entropy_increase or SMALLEST
    bar = SearchProgress("sizing", len(searched_blocks(networks.tower, settings)) * settings.search_steps, ABOUT)
    while True:
        tried[threshold] = size_of(search_blocks(networks, trial, threshold, few, bar.next()).widths)
        detail(f"threshold {threshold:.3g} nats: {tried[threshold]:.3f} of the dense {unit}; target: {target:.3f}")
        if abs(tried[threshold] / target - 1) <= NEAR / 2 or len(tried) == TRIALS:
            break
        threshold = next_threshold(tried, target)
        if not SMALLEST <= threshold <= LARGEST:
            break  # A signed criterion may leave even the smallest threshold a network that is too small.
    threshold = min(tried, key=lambda one: abs(tried[one] - target))
    off, best = 0.0, None
    for _ in range(3):
        found = search_blocks(networks, settings, threshold, told=bar.next())
        reached = size_of(found.widths)
        if best is None or abs(reached - target) < abs(best[0] - target):
            best = (reached, found)
        # The trials' curve has the slope; this search says how far it lies from it.
        off = reached - tried.get(threshold, target - off)
        threshold = next_threshold(tried, target - off)
        if abs(reached / target - 1) <= NEAR or not SMALLEST <= threshold <= LARGEST:
            break
    bar.close()
    assert best is not None
    return best[1]


def _scaled(
    found: WidthsFound, networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize, target: float
) -> WidthsFound:
    """The widths found where they meet the size, else all of them times the one factor that does.

    The scores say which of them are rounded down.

    Raises:
        UserError: no factor meets the size.
    """
    if abs(size_of(found.widths) / target - 1) <= CLOSE:
        return found
    grid = Grid.of(networks.tower, settings)
    met = stretched(grid, found.widths, size_of, target, *FACTORS)
    if abs(met.size / target - 1) > CLOSE:
        raise out_of_reach(settings.target, met.size, "the closest network with these settings", networks.journal)
    widths = settle(grid, networks.scores, size_of, target, *grid.around(met.widths))
    told = f"widths found at {found.entropy_increase:.3g} nats, multiplied by {met.at:.3f}"
    detail(f"{told}: {size_of(widths):.4f} of the dense size")
    say_if_far(size_of(widths), target, grid)
    return replace(found, widths=widths, scale=met.at, found_widths=found.widths)


def next_threshold(shares: Mapping[float, float], target: float, factor: float = 8.0) -> float:
    """Where to look next for the threshold whose network has the share `target` of the dense one's size.

    Between the nearest two thresholds with the target between their shares, by interpolation over the logarithm;
    `factor` beyond the last one where all shares lie on one side. Never a threshold that is known.

    Args:
        shares: threshold -> share of the size, which falls as the threshold grows; at least one.
    """
    known = sorted(shares.items())
    for (low, above), (high, below) in itertools.pairwise(known):
        if above >= target >= below and above > below:
            # Not too near an end, so that a curve with steps in it is halved at least now and then.
            part = min(max((above - target) / (above - below), 0.1), 0.9)
            return math.exp(math.log(low) + part * math.log(high / low))
    threshold, _ = known[-1] if known[-1][1] > target else known[0]
    return threshold * factor if known[-1][1] > target else threshold / factor
