"""Images a second of a vision tower, measured on random weights and random images.

B images of a batch, S side in pixels.
"""

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from amp.errors import UserError
from amp.run.console import progress
from amp.towers import Tower, rebuild_dense
from amp.towers.weights import fill_randomly


def rebuild(base: Mapping[str, Any], device: str, widths: Sequence[int] | None = None) -> Tower:
    """A model of the same shapes with random weights: its sizes and its speed are those of the trained one.

    Args:
        base: `Tower.base` of the model.
        device: 'cpu', 'cuda' or 'meta'.
        widths: to slice its MLPs to, one a block; None leaves it dense.
    """
    tower = rebuild_dense(base, device)
    for slot, width in zip(tower.slots, widths or tower.widths, strict=True):
        slot.keep(torch.arange(width))
    if device != "meta":
        fill_randomly(tower.model, device)
        tower.model.to(device)
    return tower


def describe_device(device: torch.device) -> str:
    """The device as people name it: the GPU's product name, or the CPU's kind and threads."""
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
        batch_size: images in one batch.
        num_rounds: measured ones, at least 2.
        num_warm_up: rounds before them.
    Raises:
        UserError: under `batch_size`; the batch does not fit the device's memory.
    """
    rates: dict[str, list[float]] = {name: [] for name in towers}
    try:
        for number in progress(range(num_warm_up + num_rounds), "throughput", "round"):
            for name, tower in towers.items():
                seconds = _time_batch(tower, batch_size)
                if number >= num_warm_up:
                    rates[name].append(batch_size / seconds)
    except torch.OutOfMemoryError:
        raise UserError("batch_size", f"{batch_size} images do not fit the device's memory") from None
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
