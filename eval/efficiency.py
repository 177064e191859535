"""Sizes and speed of a tower: parameters, FLOPs in the paper's convention and in full, images a second.

B images, S side in pixels.
"""

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from amp.config import ModelSettings
from amp.errors import UserError
from amp.runs import progress
from amp.towers import Tower, build_tower, rebuild_dense
from amp.towers.weights import fill_randomly

# Products of weights with tokens. The paper's FLOPs leave the attention products QK^T and AV out.
WEIGHT_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution)


def count_params(tower: Tower) -> int:
    """Parameters of the vision tower alone."""
    return sum(parameter.numel() for parameter in tower.visual.parameters())


def count_mlp_params(tower: Tower) -> int:
    """Parameters of the tower's prunable MLPs."""
    return sum(p.numel() for slot in tower.slots for module in slot.modules for p in module.parameters())


def count_flops(tower: Tower, attention_products: bool = False) -> int:
    """FLOPs of one image through the vision tower: 2 * MACs.

    Args:
        tower: on the meta device, where attention takes no fused path that would hide from the count.
        attention_products: count QK^T and AV too, which the paper leaves out.
    """
    return _sum_flops(_flops_by_op(tower), attention_products)


def _flops_by_op(tower: Tower) -> dict[Any, int]:
    assert next(tower.visual.parameters()).device.type == "meta"
    image_1CSS = torch.empty(1, 3, tower.image_size, tower.image_size, dtype=tower.dtype, device="meta")
    # Under no_grad, attention takes a fused path whose products the counter misses.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        tower.visual(image_1CSS.requires_grad_())
    return dict(counter.get_flop_counts()["Global"])


def _sum_flops(counts: Mapping[Any, int], attention_products: bool) -> int:
    return sum(flops for op, flops in counts.items() if attention_products or op in WEIGHT_PRODUCTS)


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


def rebuild(base: Mapping[str, Any], device: str, widths: Sequence[int] | None = None) -> Tower:
    """A model with random weights, whose sizes and speed are those of the trained one.

    Args:
        base: of a Tower.
        device: 'cpu', 'cuda' or 'meta'.
        widths: to slice its MLPs to, one a block; None leaves it dense.
    """
    tower = rebuild_dense(base, device)
    for slot, width in zip(tower.slots, widths or tower.widths, strict=True):
        slot.keep(torch.arange(width))
    if device != "meta":
        fill_randomly(tower.model)
        tower.model.to(device)
    return tower


def describe_tower(tower: Tower) -> dict[str, int]:
    """Sizes of a tower on the meta device: `{params, mlp_params, flops, flops_with_attention_products}`."""
    counts = _flops_by_op(tower)
    return {
        "params": count_params(tower),
        "mlp_params": count_mlp_params(tower),
        "flops": _sum_flops(counts, attention_products=False),
        "flops_with_attention_products": _sum_flops(counts, attention_products=True),
    }


def describe_device(device: torch.device) -> str:
    """The device as people name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def measure_throughput(
    towers: Mapping[str, Tower], batch_size: int, num_rounds: int, num_warm_up: int = 3
) -> dict[str, dict[str, float]]:
    """Images a second of each tower over the rounds: `{name: {median, lower_quartile, upper_quartile}}`.

    Every round runs one batch through each tower in turn, so that a clock that drifts meets all of them alike.

    Args:
        towers: on one device, in the precision that is to be measured.
        num_rounds: measured ones, at least 2.
        num_warm_up: rounds before them.
    Raises:
        UserError: the batch does not fit the device's memory.
    """
    rates: dict[str, list[float]] = {name: [] for name in towers}
    try:
        for number in progress(range(num_warm_up + num_rounds), "throughput", "round"):
            for name, tower in towers.items():
                seconds = _time_batch(tower, batch_size)
                if number >= num_warm_up:
                    rates[name].append(batch_size / seconds)
    except torch.OutOfMemoryError:
        raise UserError(f"--batch_size: {batch_size} images do not fit the device's memory") from None
    quartiles = {name: statistics.quantiles(of_tower, n=4, method="inclusive") for name, of_tower in rates.items()}
    return {
        name: {"median": median, "lower_quartile": lower, "upper_quartile": upper}
        for name, (lower, median, upper) in quartiles.items()
    }


@torch.inference_mode()
def _time_batch(tower: Tower, batch_size: int) -> float:
    """Seconds of one batch through the vision tower, until the device is done."""
    device = next(tower.visual.parameters()).device
    images_BCSS = torch.randn(batch_size, 3, tower.image_size, tower.image_size, device=device).to(tower.dtype)
    _wait(device)
    started = time.perf_counter()
    tower.visual(images_BCSS)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
