"""How many neurons each block keeps so that the tower has a given size, without a search.

L blocks, H hidden neurons of a block.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from amp.errors import UserError
from amp.towers.slots import MlpSlot

Widths = list[int]
CLOSE = 1e-3  # of a size


def neuron_params(slot: MlpSlot) -> int:
    """Parameters that go when one neuron of the MLP goes."""
    bias = slot.out_projection.bias
    total = sum(p.numel() for module in slot.modules for p in module.parameters(recurse=False))
    return (total - (0 if bias is None else bias.numel())) // slot.hidden_width


def uniform_widths(slots: Sequence[MlpSlot], kept: float) -> Widths:
    """The share `kept` of every block's neurons, to rounding; one at least.

    Args:
        slots: of the dense tower, L of them. kept: 0 to 1.
    """
    return [max(1, round(kept * slot.hidden_width)) for slot in slots]


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


def widths_of_size(widths_of: Callable[[float], Widths], share: Callable[[Widths], float], target: float) -> Widths:
    """The widths whose tower comes closest to `target`, by bisection of what is kept.

    Args:
        widths_of: share of the neurons that is kept, 0 to 1 -> widths; 0: one neuron a block.
        share: widths -> what the tower has of the dense one's size.
    Raises:
        UserError: with one neuron in each MLP the tower is larger than that.
    """
    low, high = 0.0, 1.0
    best = widths_of(low)
    distance = share(best) / target - 1
    if distance > CLOSE:
        raise UserError(
            "prune.target",
            f"{target:.3f} of the size is out of reach; with one neuron in each MLP {share(best):.3f} are left",
        )
    for _ in range(20):
        if abs(distance) <= CLOSE:
            break
        middle = (low + high) / 2
        widths = widths_of(middle)
        off = share(widths) / target - 1
        low, high = (middle, high) if off < 0 else (low, middle)
        if abs(off) < abs(distance):
            best, distance = widths, off
    return best
