"""The threshold whose network has the size that is asked for."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from amp.errors import UserError
from amp.prune.blocks import WidthsFound, find_widths, searched_blocks
from amp.prune.measure.networks import Candidates
from amp.run.console import say
from amp.settings.prune import SearchSettings

# Thresholds in nats that are tried, how many, and how near to the size is near enough.
SMALLEST, LARGEST, TRIALS, NEAR = 1e-7, 1e3, 12, 0.01
UNITS = {"params": "parameters", "flops": "FLOPs", "throughput": "seconds"}


def find_size(
    candidates: Candidates, settings: SearchSettings, share: Callable[[Sequence[int]], float], target: float
) -> WidthsFound:
    """The widths of the threshold whose network has the share `target` of the dense one's size, within 1 %.

    Thresholds are tried by racing on the first eighth of the batches; then the search that was asked for runs at the
    one found, and once or twice more where its own size is off.

    Raises:
        UserError: no threshold gives that size.
    """
    trial, few = settings, candidates.meter.num_batches
    if settings.search != "racing":
        trial = settings.model_copy(
            update={"search": "racing", "preset": "fast", "confidence": None, "tolerance": None}
        )
        few = max(1, few // 8)
    unit = UNITS[settings.target.asked[0]] if settings.target.asked else "size"
    tried: dict[float, float] = {}
    threshold = settings.entropy_increase or SMALLEST
    while True:
        tried[threshold] = share(find_widths(candidates, trial, threshold, few).widths)
        say(f"threshold {threshold:.3g} nats: {tried[threshold]:.3f} of the dense {unit}, {target:.3f} wanted")
        if abs(tried[threshold] / target - 1) <= NEAR / 2 or len(tried) == TRIALS:
            break
        threshold = next_threshold(tried, target)
        if not SMALLEST <= threshold <= LARGEST:
            break  # A signed criterion may leave even the smallest threshold a network that is too small.
    threshold = min(tried, key=lambda one: abs(tried[one] - target))
    off, best = 0.0, None
    for _ in range(3):
        found = find_widths(candidates, settings, threshold)
        reached = share(found.widths)
        if best is None or abs(reached - target) < abs(best[0] - target):
            best = (reached, found)
        # The trials' curve has the slope; this search says how far it lies from it.
        off = reached - tried.get(threshold, target - off)
        threshold = next_threshold(tried, target - off)
        if abs(reached / target - 1) <= NEAR or not SMALLEST <= threshold <= LARGEST:
            break
    assert best is not None
    best[1].share = best[0]
    return best[1] if abs(best[0] / target - 1) <= NEAR else _scale_to(best[1], candidates, settings, share, target)


def _scale_to(
    found: WidthsFound,
    candidates: Candidates,
    settings: SearchSettings,
    share: Callable[[Sequence[int]], float],
    target: float,
) -> WidthsFound:
    """The widths found, all times the one factor that meets the size. Raises UserError where none does."""
    dense, least, grid = candidates.tower.widths, settings.min_width, settings.width_multiple
    blocks = set(searched_blocks(candidates.tower, settings))

    def scaled(factor: float) -> list[int]:
        wanted = [max(least, grid, round(width * factor / grid) * grid) for width in found.widths]
        return [min(w, whole) if i in blocks else whole for i, (w, whole) in enumerate(zip(wanted, dense, strict=True))]

    low, high = 0.5, 2.0
    for _ in range(20):
        factor = (low + high) / 2
        reached = share(scaled(factor))
        if abs(reached / target - 1) <= NEAR / 2:
            break
        low, high = (factor, high) if reached < target else (low, factor)
    if abs(reached / target - 1) > NEAR:
        raise UserError(
            "prune.target", f"{target:.3f} of the size is out of reach; the closest found has {reached:.3f}"
        )
    found.widths, found.scale, found.share = scaled(factor), factor, reached
    say(f"the widths of {found.entropy_increase:.3g} nats, times {factor:.3f}: {reached:.3f} of the size")
    return found


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
