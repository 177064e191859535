"""One threshold over the scores of all blocks.

N neurons of all blocks, H hidden neurons of a block, L blocks.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from amp.models.sizes import neuron_params
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
    return widths_of_size(partial(global_widths, networks.tower.slots, networks.scores), size_of, settings.target), None


def global_widths(slots: Sequence[MlpSlot], scores: Sequence[Tensor], kept: float) -> Widths:
    """One threshold over the scores of all blocks: the lowest go until the share `kept` of the MLPs is left, or less.

    Every block keeps its highest neuron. Of equal scores, those of earlier blocks go first.

    Args:
        slots: of the dense tower, L of them. scores: (H,) a block. kept: of the parameters of all neurons, 0 to 1.
    """
    ascending = [score_H.cpu().float().sort().values[:-1] for score_H in scores]  # without the highest one
    blocks_N = torch.cat([torch.full((len(values),), block) for block, values in enumerate(ascending)])
    blocks_N = blocks_N[torch.cat(ascending).argsort(stable=True)]
    removed_N = torch.tensor([neuron_params(slot) for slot in slots])[blocks_N].cumsum(0)
    wanted = (1 - kept) * sum(slot.hidden_width * neuron_params(slot) for slot in slots)
    num_removed = int(torch.searchsorted(removed_N, round(wanted))) + 1 if wanted > 0 else 0
    gone_L = torch.bincount(blocks_N[:num_removed], minlength=len(slots))
    return [slot.hidden_width - int(gone) for slot, gone in zip(slots, gone_L, strict=True)]
