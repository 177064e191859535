"""The widths of a grid that meet a size at the least loss: neurons go in units, the cheapest for what they save first.

U units of a block, from its widest width down.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from torch import Tensor

from amp.pruning.measure.journal import Journal
from amp.pruning.size.grid import Grid, Widths
from amp.pruning.size.relative import CLOSE, RelativeSize, out_of_reach
from amp.run.console import say
from amp.settings.prune import TargetSettings

STEPS = 50  # of a bisection over factors: beyond what a width of a million can tell apart


def settle(
    grid: Grid,
    scores: Sequence[Tensor],
    size_of: RelativeSize,
    target: float,
    high: Widths | None = None,
    low: Widths | None = None,
) -> Widths:
    """The widths between `low` and `high` whose tower comes closest to a size, at the least loss on the way.

    A unit is what lies between two widths of the grid. Its loss is the sum of the scores of its neurons, a block's
    lowest first. Units go in ascending order of the loss for what they save; of equal ones those of earlier blocks.
    All sizes lie in that one order, so that smaller networks are parts of larger ones; but where a large unit, such as
    an attention head, leaves the size more than 0.5 % off, it stays, and later ones go in its place. Where narrow
    blocks save less than wide ones, what a block loses is taken along its lower convex hull, as is the best for sizes
    between.

    Args:
        scores: (H,) a block.
        target: of the dense tower's size.
        high, low: widths of the grid; None: the dense and the least ones.
    """
    high, low = high or grid.dense, low or grid.least
    blocks, rates, savings = [], [], []
    for block, (score_H, saving) in enumerate(zip(scores, size_of.savings, strict=True)):
        levels = [w for w in reversed(grid.levels[block]) if low[block] <= w <= high[block]]
        if len(levels) == 1:
            continue
        gone = grid.levels[block][-1] - np.array(levels)
        lost = np.concatenate([[0.0], np.sort(score_H.cpu().double().numpy()).cumsum()])[gone]
        saved_U = np.maximum(np.diff(saving(np.array(levels))), np.finfo(float).tiny ** 0.5)
        blocks.append(np.full(len(saved_U), block))
        rates.append(isotonic_regression(np.diff(lost) / saved_U, weights=saved_U).x)
        savings.append(saved_U)
    if not blocks:
        return high
    order = np.concatenate(rates).argsort(kind="stable")
    block_U, saved_U = np.concatenate(blocks)[order], np.concatenate(savings)[order]
    left = size_of(high) - np.concatenate([[0.0], saved_U.cumsum()])
    gone = range(int(np.abs(left - target).argmin()))
    if abs(left[len(gone)] / target - 1) > CLOSE:
        fit, size = _that_fit(block_U, saved_U, size_of(high), target)
        gone = min((gone, left[len(gone)]), (fit, size), key=lambda own: abs(own[1] - target))[0]
    gone_L = np.bincount(block_U[list(gone)], minlength=len(high))
    return [own[own.index(width) - gone] for own, width, gone in zip(grid.levels, high, gone_L.tolist(), strict=True)]


def _that_fit(block_U: np.ndarray, saved_U: np.ndarray, size: float, target: float) -> tuple[list[int], float]:
    """Places of the units, in their order, that leave no less than `target`, and what they leave.

    Of a block none goes after one that stays.
    """
    found, closed = [], set()
    for place, (block, saved) in enumerate(zip(block_U.tolist(), saved_U.tolist(), strict=True)):
        if block in closed or size - saved < target:
            closed.add(block)
        else:
            found.append(place)
            size -= saved
    return found, size


@dataclass(frozen=True)
class SizeMet:
    """Widths of a family, at which of its members they are, and what size their tower has of the dense one's."""

    widths: Sequence[float]
    at: float
    size: float


def meet_size(
    family: Callable[[float], Sequence[float]],
    size_of: Callable[[Sequence[float]], float],
    target: float,
    low: float = 0.0,
    high: float = 1.0,
) -> SizeMet:
    """The member of a family of widths whose tower comes closest to a size, by bisection.

    The least member comes first: where it is too large, no other one is tried.

    Args:
        family: number -> widths, none of which falls as the number grows.
        target: of the dense tower's size.
        low, high: of the numbers.
    """
    first = at = low
    best: SizeMet | None = None
    for _ in range(STEPS):
        widths = family(at)
        tried = SizeMet(widths, at, size_of(widths))
        off = tried.size - target
        if best is None or abs(off) < abs(best.size - target):
            best = tried
        if off == 0 or (at == first and off > 0):
            break
        low, high = (at, high) if off < 0 else (low, at)
        at = (low + high) / 2
    assert best is not None
    return best


def stretched(
    grid: Grid, widths: Sequence[int], size_of: RelativeSize, target: float, low: float = 0.0, high: float = 1.0
) -> SizeMet:
    """Widths times the one factor that meets a size, before they are rounded; each within the bounds of the grid.

    Args:
        low, high: of the factor.
    """
    return meet_size(lambda factor: grid.within([width * factor for width in widths]), size_of, target, low, high)


def check_reach(grid: Grid, size_of: RelativeSize, target: TargetSettings, journal: Journal | None = None) -> None:
    """Raises UserError where the smallest network of the grid is larger than `target`."""
    smallest = size_of(grid.least)
    assert target.left is not None
    if smallest / target.left - 1 > CLOSE:
        raise out_of_reach(target, smallest, "the smallest network with these settings", journal)


def say_if_far(size: float, target: float, grid: Grid) -> None:
    """That the units of the grid come no closer to a size, where that is so."""
    if abs(size / target - 1) > CLOSE:
        finer = "; prune.width_multiple: 1 gets closer" if grid.multiple > 1 else ""
        say(f"note: {size:.4f} of the size is the closest to {target:g} with widths in steps of {grid.multiple}{finer}")
