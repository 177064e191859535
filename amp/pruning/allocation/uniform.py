"""The same share of every block's neurons."""

from collections.abc import Sequence
from functools import partial

from amp.pruning.allocation._by_share import widths_of_size
from amp.pruning.blocks import WidthsFound
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.size import RelativeSize, Widths
from amp.settings.prune import SearchSettings
from amp.towers.mlps.slots import MlpSlot


def allocate(
    networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize | None
) -> tuple[Widths, WidthsFound | None]:
    """The widths of the size that `settings.target` asks for. Raises UserError where it is out of reach."""
    return widths_of_size(partial(uniform_widths, networks.tower.slots), size_of, settings.target), None


def uniform_widths(slots: Sequence[MlpSlot], kept: float) -> Widths:
    """The share `kept` of every block's neurons, to rounding; one at least.

    Args:
        slots: of the dense tower, L of them. kept: 0 to 1.
    """
    return [max(1, round(kept * slot.hidden_width)) for slot in slots]
