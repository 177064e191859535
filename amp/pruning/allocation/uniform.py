"""The same share of every block's neurons."""

from amp.pruning.blocks import WidthsFound
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.size import CLOSE, Grid, RelativeSize, Widths, check_reach, meet, say_if_far, settle, stretched
from amp.run.console import say
from amp.settings.prune import SearchSettings


def allocate(
    networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize | None
) -> tuple[Widths, WidthsFound | None]:
    """The widths of the size that `settings.target` asks for: one share of every block, in whole multiples.

    Where that is not the size, blocks of one width differ by one multiple: those keep it whose scores say so.

    Raises:
        UserError: the size is out of reach.
    """
    assert size_of is not None
    return meet(lambda size: (uniform_widths(networks, settings, size), None), size_of, settings.target)


def uniform_widths(networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize) -> Widths:
    """The same, as `size_of` says what each network has of the dense one's size."""
    target, grid = settings.target.left, Grid(networks.tower.widths, settings)
    assert target is not None
    check_reach(grid, size_of, settings.target)
    wanted = stretched(grid, grid.dense, size_of, target).widths
    widths = grid.nearest(wanted)
    if abs(size_of(widths) / target - 1) > CLOSE:
        one = f"{size_of(widths):.4f}"
        widths = settle(grid, networks.scores, size_of, target, *grid.around(wanted))
        if grid.multiple > 1:
            say(
                f"note: blocks differ by {grid.multiple} neurons, since one share of them all would have {one} of the "
                f"size, not {target:g}; prune.width_multiple: 1 gives one width"
            )
    say_if_far(size_of(widths), target, grid)
    return widths
