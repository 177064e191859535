"""One threshold over the scores of all blocks, for what their neurons cost."""

from amp.pruning.blocks import WidthsFound
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.size import Grid, RelativeSize, Widths, check_reach, meet, say_if_far, settle
from amp.settings.prune import SearchSettings


def allocate(
    networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize | None
) -> tuple[Widths, WidthsFound | None]:
    """The widths of the size that `settings.target` asks for.

    From the dense tower on, neurons go in units of `width_multiple`, those of the lowest scores for their size first.

    Raises:
        UserError: the size is out of reach.
    """
    assert size_of is not None
    return meet(lambda size: (global_widths(networks, settings, size), None), size_of, settings.target)


def global_widths(networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize) -> Widths:
    """The same, as `size_of` says what each network has of the dense one's size."""
    target, grid = settings.target.left, Grid(networks.tower.widths, settings)
    assert target is not None
    check_reach(grid, size_of, settings.target)
    widths = settle(grid, networks.scores, size_of, target)
    say_if_far(size_of(widths), target, grid)
    return widths
