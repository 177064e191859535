"""Parameters and FLOPs of a vision tower, in the convention of the paper (AMP, arXiv 2603.08100) and in full.

A FLOP is an addition or a multiplication: 2 a multiply-accumulate. The paper counts the products of weights with
tokens; those of attention, QK^T and AV, are counted on demand. Everything is counted for one image, on meta tensors:
no weights are needed, and a tower of billions of parameters takes a second.

S side of the image in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amp.towers import Slot, Tower

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
    assert tower.device.type == "meta"
    # Under no_grad, attention takes a fused path whose products the counter misses.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        tower.visual(tower.blank().requires_grad_())
    return dict(counter.get_flop_counts()["Global"])


def _sum_flops(counts: Mapping[Any, int], attention_products: bool) -> int:
    return sum(flops for op, flops in counts.items() if attention_products or op in WEIGHT_PRODUCTS)


def neuron_params(slot: Slot) -> int:
    """Parameters that go when one neuron of an MLP, or one head of an attention, goes."""
    return sum(parameter.numel() for parameter in slot.shared) // slot.num_units


def count_by_width(tower: Tower) -> Callable[[Sequence[int]], dict[str, int]]:
    """Counts, as of `Tower.counts`, -> `{params, flops}` of the tower with them, by arithmetic: both fall by the same
    with each neuron of an MLP, and with each head of an attention.

    Args:
        tower: dense, on the meta device; it is run once, now.
    """
    tokens = [0] * len(tower.units)

    def watch(place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens[place] += inputs[0].numel() // inputs[0].shape[-1]

        return add

    with ExitStack() as hooks:
        for place, slot in enumerate(tower.units):
            hooks.callback(slot.out_projection.register_forward_pre_hook(watch(place)).remove)
        dense = {"params": count_params(tower), "flops": count_flops(tower)}
    weights = [sum(linear.weight.numel() for linear in slot.linears) // slot.num_units for slot in tower.units]
    each = {
        "params": [neuron_params(slot) for slot in tower.units],
        "flops": [2 * number * of_unit for number, of_unit in zip(tokens, weights, strict=True)],
    }
    whole = tower.counts

    def sizes(counts: Sequence[int]) -> dict[str, int]:
        gone = [number - left for number, left in zip(whole, counts, strict=True)]
        return {key: dense[key] - sum(map(mul, gone, of_unit)) for key, of_unit in each.items()}

    return sizes


def measure_widths(tower: Tower, counts: Sequence[int]) -> dict[str, int]:
    """`{params, flops}` of the tower with these counts, as of `Tower.counts`; it is left as it was.

    Args:
        tower: dense, on the meta device.
    """
    with ExitStack() as narrowed:
        for slot, count in zip(tower.units, counts, strict=True):
            narrowed.enter_context(slot.narrowed(torch.arange(count)))
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
