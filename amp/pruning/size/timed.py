"""Seconds as a size: predicted from a table of one block's seconds by its width, and corrected by whole networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import isotonic_regression

from amp.errors import under
from amp.models.latency import alike_blocks, block_seconds, relative_seconds, tower_seconds
from amp.pruning.measure.journal import Journal
from amp.pruning.size.grid import Grid, Widths
from amp.pruning.size.relative import CLOSE, UNITS, RelativeSize, Saving, counted_size, out_of_reach
from amp.pruning.size.units import check_reach, stretched
from amp.run.console import say
from amp.run.world import world
from amp.settings.prune import SearchSettings, TargetSettings
from amp.towers import Tower

Found = TypeVar("Found")

BATCHES = {"throughput": 64, "latency": 1}
# Widths of the table, of the dense one.
SHARES = (1, 0.875, 0.75, 0.625, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0)
# Of the seconds: as near as is near enough for a further round, and as near as is promised; rounds at most.
NEAR, PROMISED, ROUNDS = 0.01, 0.03, 4
LEAST_FACTOR = 0.05  # by which savings are corrected, where a narrow network was no faster than the dense one


@dataclass(frozen=True)
class TimedSize(RelativeSize):
    """What a tower takes of the dense one's seconds, as predicted by a table.

    Attributes:
        grid: of the settings.
        clock: widths -> the share that a whole network takes.
    """

    grid: Grid
    clock: Callable[[Sequence[int]], float]

    def measure(self, widths: Sequence[int]) -> float:
        """By the clock."""
        return self.clock(widths)

    def corrected(self, widths: Sequence[int], measured: float) -> "TimedSize":
        """The same with all savings times the one factor that predicts what was measured at these widths."""
        saved = 1 - self(widths)
        factor = max((1 - measured) / saved, LEAST_FACTOR) if saved > 0 else 1.0
        return replace(self, savings=tuple(partial(_times, factor, saving) for saving in self.savings))


def _times(factor: float, saving: Saving, width: Any) -> Any:
    return factor * saving(width)


def meet(
    allocate: Callable[[RelativeSize], tuple[Widths, Found]], size_of: RelativeSize, target: TargetSettings
) -> tuple[Widths, Found]:
    """The widths that an allocation gives for a size and, where that is of seconds, a clock finds within 3 % of it.

    One network in which all blocks keep the same share of their neurons corrects the table; then each allocation that
    is further away than 1 % corrects it once more, for the next one.

    Args:
        allocate: size -> widths, and whatever else it found.
    Raises:
        UserError: the target is out of reach.
    """
    if not isinstance(size_of, TimedSize):
        return allocate(size_of)
    left, grid = target.left, size_of.grid
    assert left is not None
    assert target.asked is not None
    alike = grid.nearest(stretched(grid, grid.dense, size_of, left).widths)
    size_of = size_of.corrected(alike, size_of.measure(alike))
    tried: list[tuple[float, Widths, Found]] = []
    for _ in range(ROUNDS):
        if size_of(grid.least) / left - 1 > CLOSE:  # A target is refused by what was measured alone.
            size_of = size_of.corrected(grid.least, size_of.measure(grid.least))
        widths, found = allocate(size_of)
        if widths in [earlier for _, earlier, _ in tried]:
            break
        measured = size_of.measure(widths)
        tried.append((abs(measured / left - 1), widths, found))
        speed = f", {1 / measured:.2f} times the dense speed" if target.asked[0] == "throughput" else ""
        say(f"measured: {measured:.3f} of the dense {UNITS[target.asked[0]]}{speed}; predicted: {size_of(widths):.3f}")
        if tried[-1][0] <= NEAR:
            break
        if widths == grid.least and measured > left:
            if tried[-1][0] > PROMISED:
                raise out_of_reach(target, measured, "the smallest network with these settings")
            break
        size_of = size_of.corrected(widths, measured)
    off, widths, found = min(tried, key=lambda one: one[0])
    if off > PROMISED:
        say(
            f"note: that misses the target by {off:.1%}; the device's clock varies, or its speed changes in steps "
            "of width"
        )
    return widths, found


def check_counted(tower: Tower, asked: Sequence[SearchSettings]) -> None:
    """Raises UserError where no network of the settings has the parameters or FLOPs that its target asks for."""
    size_of = cache(partial(counted_size, tower=tower))
    for settings in asked:
        key = settings.target.asked and settings.target.asked[0]
        if key and key not in BATCHES:
            check_reach(Grid.of(tower, settings), size_of(key), settings.target)


def relative_size(settings: SearchSettings, tower: Tower, journal: Journal) -> RelativeSize | None:
    """What a tower has of the dense one's size, of the kind that `settings.target` asks for; None where it asks none.

    Args:
        tower: dense; where a speed is asked for, on the device that is to be fast.
        journal: keeps what a clock has said, so that a search that goes on decides by it. An entry of the table is in
            it as that of the network in which one block of the kind is narrow.
    Raises:
        UserError: the images of a batch do not fit the device's memory.
    """
    if settings.target.asked is None:
        return None
    key = settings.target.asked[0]
    if key not in BATCHES:
        return counted_size(key, tower)
    grid, batch_size = Grid.of(tower, settings), BATCHES[key]

    def ask(network: Sequence[int], clock: Callable[[], float]) -> float:
        """Of one process, for all."""
        with under(f"prune.target.{key}", instead_of="batch_size"):
            return journal.size(tuple(network), lambda: float(world().broadcast(clock())))

    savings = _table(tower, grid, batch_size, ask)
    return TimedSize(savings, grid, lambda widths: ask(widths, lambda: relative_seconds(tower, widths, batch_size)))


def _table(
    tower: Tower, grid: Grid, batch_size: int, ask: Callable[[Sequence[int], Callable[[], float]], float]
) -> tuple[Saving, ...]:
    """Of every block; one of each kind is measured."""
    dense = tower.widths
    savings: dict[int, Saving] = {}
    whole = cache(lambda: tower_seconds(tower, batch_size))
    for kind in alike_blocks(tower, batch_size):
        first = kind.blocks[0]
        levels = np.array(grid.levels[first])
        widths = sorted({int(levels[np.abs(levels - share * dense[first]).argmin()]) for share in SHARES})
        seconds = cache(partial(block_seconds, tower, kind, widths, batch_size))
        shares = {}
        for width in widths[:-1]:
            clock = partial(_share, seconds, whole, width, dense[first])
            shares[width] = ask([width if block == first else own for block, own in enumerate(dense)], clock)
        savings |= dict.fromkeys(kind.blocks, interpolated({**shares, dense[first]: 1.0}))
    return tuple(savings[block] for block in range(len(dense)))


def _share(seconds: Callable[[], Mapping[int, float]], whole: Callable[[], float], width: int, dense: int) -> float:
    return 1 - (seconds()[dense] - seconds()[width]) / whole()


def interpolated(shares: Mapping[int, float]) -> Saving:
    """What a block saves at any width, by what the tower takes at some; never less where it is narrower.

    Args:
        shares: width -> of the dense tower's seconds; 1 at the largest.
    """
    widths = sorted(shares)
    saved = isotonic_regression([max(0.0, 1 - shares[width]) for width in widths], increasing=False).x
    return partial(np.interp, xp=widths, fp=saved)
