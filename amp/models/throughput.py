"""Seconds of what runs on a device, and a vision tower of random weights and images to run there.

B images of a batch, S side in pixels.
"""

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amp.errors import UserError
from amp.towers import Tower, rebuild_dense, with_heads
from amp.towers.weights import fill_randomly


def rebuild(base: Mapping[str, Any], device: str, counts: Sequence[int] | None = None) -> Tower:
    """A model of the same shapes with random weights: its sizes and its speed are those of the trained one.

    Args:
        base: `Tower.base` of the model.
        device: 'cpu', 'cuda' or 'meta'. Off 'meta' it is the vision tower alone, its weights drawn on the device.
        counts: of neurons, and of heads where any may be removed, as of `Tower.counts`; None leaves it dense.
    """
    tower = rebuild_dense(base, device)
    if counts and len(counts) > len(tower.slots):
        tower = with_heads(tower)
    for slot, count in zip(tower.units, counts or tower.counts, strict=True):
        slot.keep(torch.arange(count))
    if device == "meta":
        return tower
    fill_randomly(tower.visual, device)
    return replace(tower, model=tower.visual.to(device), encode_image=None, encode_text=None)


def describe_device(device: torch.device) -> str:
    """The device as people name it: the GPU's product name, or the CPU's kind and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {threads} {'thread' if threads == 1 else 'threads'})"


@contextmanager
def fitting(batch_size: int) -> Iterator[None]:
    """Around what a batch may be too large for. Raises UserError under `batch_size`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError("batch_size", f"a batch of {batch_size} images does not fit in the device's memory") from None


def images_for(tower: Tower, batch_size: int) -> Tensor:
    """Random images (B, C, S, S) on the tower's device, in its dtype."""
    return torch.randn(batch_size, 3, tower.image_size, tower.image_size, device=tower.device).to(tower.dtype)


def seconds_of(
    run: Callable[[], object], device: torch.device, repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one run, until the device is done.

    Args:
        run: what is measured; without gradients, where they are no part of it.
        device: on which it runs.
        repeats: runs between two looks at the clock; of what is shorter than a GPU's launches, several.
        clock: seconds that only grow.
    """
    _wait(device)
    started = clock()
    for _ in range(repeats):
        run()
    _wait(device)
    return (clock() - started) / repeats


def rounds_of(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    most: int,
    budget: float = math.inf,
    least: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict[str, float]]:
    """Seconds of each of several runs, a round after another: `{name: seconds}`.

    Every round runs each in turn, so that a clock that drifts meets all of them alike.

    Args:
        most: rounds.
        budget: seconds after which no further round begins, once there are `least`.
    """
    started = clock()
    for number in range(most):
        if number >= least and clock() - started > budget:
            return
        yield {name: seconds_of(run, device, clock=clock) for name, run in runs.items()}


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """`{median, lower_quartile, upper_quartile}` of two values or more."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
