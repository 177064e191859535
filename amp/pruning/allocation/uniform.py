"""The same share of neurons in every block.

In whole multiples; where that is not the size, blocks of one width differ by one multiple: those keep it whose scores
say so.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from amp.pruning.allocation._by_scores import allocate_by
from amp.pruning.size import CLOSE, Grid, RelativeSize, Widths, settle, stretched
from amp.run.console import say


def uniform_widths(grid: Grid, scores: Sequence[Tensor], size_of: RelativeSize, target: float) -> Widths:
    """As of `Choose`."""
    wanted = stretched(grid, grid.dense, size_of, target).widths
    widths = grid.nearest(wanted)
    if abs(size_of(widths) / target - 1) > CLOSE:
        one = f"{size_of(widths):.4f}"
        widths = settle(grid, scores, size_of, target, *grid.around(wanted))
        if grid.multiple > 1:
            say(
                f"note: some blocks keep {grid.multiple} neurons more than others: the same share in all blocks would "
                f"give {one} of the size instead of {target:g}; prune.width_multiple: 1 gives all blocks one share"
            )
    return widths


allocate = partial(allocate_by, uniform_widths)
