"""Parameters and FLOPs of a vision tower, in the convention of the paper (AMP, arXiv 2603.08100) and in full.

A FLOP is an addition or a multiplication: 2 a multiply-accumulate. The paper counts the products of weights with
tokens; those of attention, QK^T and AV, are counted on demand. Everything is counted for one image, on meta tensors:
no weights are needed, and a tower of billions of parameters takes a second.

S side of the image in pixels.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from amp.towers import Tower

# Products of weights with tokens.
WEIGHT_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution)


def count_params(tower: Tower) -> int:
    """Parameters of the vision tower alone."""
    return sum(parameter.numel() for parameter in tower.visual.parameters())


def count_mlp_params(tower: Tower) -> int:
    """Parameters of the tower's prunable MLPs."""
    return sum(p.numel() for slot in tower.slots for module in slot.modules for p in module.parameters())


def count_flops(tower: Tower, attention_products: bool = False) -> int:
    """FLOPs of one image through the vision tower.

    Args:
        tower: on the meta device, where attention takes no fused path that would hide from the count.
        attention_products: count QK^T and AV too, which the paper leaves out.
    """
    return _sum_flops(_flops_by_op(tower), attention_products)


def _flops_by_op(tower: Tower) -> dict[Any, int]:
    """FLOPs of one image by torch's operator."""
    assert next(tower.visual.parameters()).device.type == "meta"
    image_1CSS = torch.empty(1, 3, tower.image_size, tower.image_size, dtype=tower.dtype, device="meta")
    # Under no_grad, attention takes a fused path whose products the counter misses.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        tower.visual(image_1CSS.requires_grad_())
    return dict(counter.get_flop_counts()["Global"])


def _sum_flops(counts: Mapping[Any, int], attention_products: bool) -> int:
    return sum(flops for op, flops in counts.items() if attention_products or op in WEIGHT_PRODUCTS)


def measure_widths(tower: Tower, widths: Sequence[int]) -> dict[str, int]:
    """`{params, flops}` of the tower with these widths; it is left as it was.

    Args:
        tower: dense, on the meta device.
        widths: hidden widths, one a block.
    """
    with ExitStack() as narrowed:
        for slot, width in zip(tower.slots, widths, strict=True):
            narrowed.enter_context(slot.narrowed(torch.arange(width)))
        return {"params": count_params(tower), "flops": count_flops(tower)}


def describe_tower(tower: Tower) -> dict[str, int]:
    """Sizes of a tower on the meta device: `{params, mlp_params, flops, flops_with_attention_products}`."""
    counts = _flops_by_op(tower)
    return {
        "params": count_params(tower),
        "mlp_params": count_mlp_params(tower),
        "flops": _sum_flops(counts, attention_products=False),
        "flops_with_attention_products": _sum_flops(counts, attention_products=True),
    }
