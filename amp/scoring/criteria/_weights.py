"""The weights of each neuron, for the criteria that look at nothing else."""

import torch
from torch import Tensor

from amp.towers.mlps.slots import MlpSlot


def neuron_rows(slot: MlpSlot) -> Tensor:
    """(H, D) the in-projection weights of each neuron; of a gated MLP (H, 2D), gate and value side by side."""
    weights = [linear.weight for linear in slot.in_projections]
    return torch.cat(list(weights[0].chunk(2)) if slot.packed else weights, dim=1)
