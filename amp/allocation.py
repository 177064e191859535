"""How many neurons each block keeps so that the tower has a given size: pure functions of scores and counts.

L blocks, H hidden neurons of a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from amp.errors import UserError
from amp.mlp import MlpSlot


def neuron_params(slot: MlpSlot) -> int:
    """Parameters that go when one neuron of the MLP goes."""
    bias = slot.out_projection.bias
    total = sum(p.numel() for module in slot.modules for p in module.parameters(recurse=False))
    return (total - (0 if bias is None else bias.numel())) // slot.hidden_width


def uniform_widths(slots: Sequence[MlpSlot], num_params: int, share: float) -> list[int]:
    """The same share of every block's neurons, such that the tower keeps `share` of its parameters, to rounding.

    Args:
        slots: of the dense tower, L of them. num_params: of the dense tower.
    Raises:
        UserError: without any MLP the tower is larger than that.
    """
    prunable = sum(slot.hidden_width * neuron_params(slot) for slot in slots)
    kept = 1 - _to_remove(slots, num_params, share) / prunable
    return [max(1, round(kept * slot.hidden_width)) for slot in slots]


def global_widths(slots: Sequence[MlpSlot], scores: Sequence[Tensor], num_params: int, share: float) -> list[int]:
    """One threshold over the scores of all blocks: the lowest go until `share` of the parameters is left, or less.

    Every block keeps its highest neuron. Of equal scores, those of earlier blocks go first.

    Args:
        slots: of the dense tower, L of them. scores: (H,) a block. num_params: of the dense tower.
    Raises:
        UserError: without any MLP the tower is larger than that.
    """
    missing = _to_remove(slots, num_params, share)
    ascending = [score_H.cpu().float().sort().values[:-1] for score_H in scores]  # without the highest one
    blocks_N = torch.cat([torch.full((len(values),), block) for block, values in enumerate(ascending)])
    blocks_N = blocks_N[torch.cat(ascending).argsort(stable=True)]
    removed_N = torch.tensor([neuron_params(slot) for slot in slots])[blocks_N].cumsum(0)
    num_removed = int(torch.searchsorted(removed_N, missing)) + 1 if missing > 0 else 0
    gone_L = torch.bincount(blocks_N[:num_removed], minlength=len(slots))
    return [slot.hidden_width - int(gone) for slot, gone in zip(slots, gone_L, strict=True)]


def _to_remove(slots: Sequence[MlpSlot], num_params: int, share: float) -> int:
    """Parameters too many. Raises UserError where one neuron a block would still be too large."""
    missing = round((1 - share) * num_params)
    most = sum((slot.hidden_width - 1) * neuron_params(slot) for slot in slots)
    if missing > most:
        raise UserError(
            f"size: {share:g} of the tower's parameters cannot be reached: with one neuron in each MLP "
            f"{1 - most / num_params:.3f} are left; ask for more"
        )
    return missing
