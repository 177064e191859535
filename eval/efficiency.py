"""Sizes of a tower: parameters, and FLOPs in the paper's convention."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from amp.config import ModelSettings
from amp.towers import Tower, build_tower

# Products of weights with tokens. The paper's FLOPs leave the attention products QK^T and AV out.
WEIGHT_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution)


def count_params(tower: Tower) -> int:
    """Parameters of the vision tower alone."""
    return sum(parameter.numel() for parameter in tower.visual.parameters())


def count_flops(tower: Tower) -> int:
    """FLOPs of one image through the vision tower: 2 * MACs, without the QK^T and AV products.

    Args:
        tower: on the meta device, where attention takes no fused path that would hide from the count.
    """
    assert next(tower.visual.parameters()).device.type == "meta"
    image_1CSS = torch.empty(1, 3, tower.image_size, tower.image_size, dtype=tower.dtype, device="meta")
    # Under no_grad, attention takes a fused path whose products the counter misses.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        tower.visual(image_1CSS.requires_grad_())
    return sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if op in WEIGHT_PRODUCTS)


def measure_sizes(settings: ModelSettings, kept: list[list[int]]) -> dict[str, dict[str, int]]:
    """`{params, flops}` of the tower `{dense, pruned}`, counted on meta tensors.

    Args:
        kept: kept neurons' indices by block.
    """
    tower = build_tower(settings, "meta")
    sizes: dict[str, Any] = {"params": {"dense": count_params(tower)}, "flops": {"dense": count_flops(tower)}}
    for slot, indices in zip(tower.slots, kept, strict=True):
        slot.keep(torch.tensor(indices))
    sizes["params"]["pruned"], sizes["flops"]["pruned"] = count_params(tower), count_flops(tower)
    return sizes
