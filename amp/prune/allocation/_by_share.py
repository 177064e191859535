"""What allocations without a search have in common: one number, the share of the neurons that is kept."""

from collections.abc import Callable

from amp.errors import UserError
from amp.prune.size import CLOSE, RelativeSize, Widths, meet_size


def widths_of_size(family: Callable[[float], Widths], size_of: RelativeSize | None, target: float | None) -> Widths:
    """The widths whose tower comes closest to `target`.

    Args:
        family: share of the neurons that is kept, 0 to 1 -> widths; 0: one neuron a block.
        size_of, target: given wherever the settings have such an allocation.
    Raises:
        UserError: with one neuron in each MLP the tower is larger than that.
    """
    assert size_of is not None
    assert target is not None
    met = meet_size(family, size_of, target)
    if met.at == 0.0 and met.size / target - 1 > CLOSE:
        raise UserError(
            "prune.target",
            f"{target:.3f} of the size is out of reach; with one neuron in each MLP {met.size:.3f} are left",
        )
    return met.widths
