"""What allocations without a search have in common: one number, the share of the neurons that is kept."""

from collections.abc import Callable

from amp.pruning.size import CLOSE, RelativeSize, Widths, meet_size, out_of_reach
from amp.settings.prune import TargetSettings


def widths_of_size(family: Callable[[float], Widths], size_of: RelativeSize | None, target: TargetSettings) -> Widths:
    """The widths whose tower comes closest to `target`.

    Args:
        family: share of the neurons that is kept, 0 to 1 -> widths; 0: one neuron a block.
        size_of, target: given wherever the settings have such an allocation.
    Raises:
        UserError: with one neuron in each MLP the tower is larger than that.
    """
    assert size_of is not None
    assert target.left is not None
    met = meet_size(family, size_of, target.left)
    if met.at == 0.0 and met.size / target.left - 1 > CLOSE:
        raise out_of_reach(target, met.size, "the smallest network, of one neuron in each MLP,")
    return met.widths
