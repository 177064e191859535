"""What allocations without a search have in common: widths of a grid that meet a size, settled by the scores."""

from collections.abc import Callable, Sequence

from torch import Tensor

from amp.pruning.blocks import WidthsFound
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.size import Grid, RelativeSize, Widths, check_reach, meet, say_if_far
from amp.settings.prune import SearchSettings

# A grid, the scores (H,) of every block, what widths have of the dense size, and what is wanted of it -> widths.
Choose = Callable[[Grid, Sequence[Tensor], RelativeSize, float], Widths]


def allocate_by(
    choose: Choose, networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize | None
) -> tuple[Widths, WidthsFound | None]:
    """The widths that `choose` gives for the size that `settings.target` asks for.

    Raises:
        UserError: the size is out of reach.
    """
    assert size_of is not None

    def widths_of(size: RelativeSize) -> tuple[Widths, None]:
        target, grid = settings.target.left, Grid.of(networks.tower, settings)
        assert target is not None
        check_reach(grid, size, settings.target)
        widths = choose(grid, networks.scores, size, target)
        say_if_far(size(widths), target, grid)
        return widths, None

    return meet(widths_of, size_of, settings.target)
