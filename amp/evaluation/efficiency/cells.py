"""What is measured of a tower on a device, cell by cell: a tower, a precision, and whether its blocks are compiled.

B images of a batch.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from amp.errors import shortened
from amp.evaluation.options.speed import Mode, Number
from amp.export.compiled import compile_blocks
from amp.models.memory import tensor_bytes
from amp.models.throughput import images_for, quartiles, rebuild, rounds_of
from amp.towers import Tower

WARM_UP = {"cuda": 3, "cpu": 1}  # rounds
Clock = Callable[[], float]
Cells = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Measure:
    """How a cell is measured.

    Attributes:
        device: where.
        batch_size: B of the throughput; the latency is that of one image.
        most: rounds at most, after those to warm up.
        budget: seconds after which no further round of a throughput, or of a latency, begins once there are three.
        step: called after every round with how many of `most` are done, all of them after the last one.
    """

    device: torch.device
    batch_size: int
    most: int
    budget: float
    step: Callable[[int], object] = lambda rounds: None
    clock: Clock = time.perf_counter


def measure_precision(
    base: Mapping[str, Any],
    variants: Mapping[str, list[int] | None],
    precision: Number,
    modes: tuple[Mode, ...],
    how: Measure,
) -> Iterator[tuple[Mode, Cells]]:
    """The cells of all variants in one precision, one mode after another.

    A variant's cell is `{images_per_second, latency_ms, memory_bytes}`, the first two as medians with quartiles, the
    last on a GPU alone; and `{failed}`, in words, where it could not be measured. The towers are built once, and run by
    turns.

    Args:
        base: of the dense tower.
        variants: a name -> the widths of its blocks; None: dense.
        modes: 'eager' before 'compiled', which changes the towers.
    """
    failed: dict[str, str] = {}
    towers: dict[str, Tower] = {}
    for name, widths in variants.items():
        with _told(failed, name):
            towers[name] = in_precision(base, precision, str(how.device), widths)
    for mode in modes:
        for tower in towers.values() if mode == "compiled" else ():
            compile_blocks(tower)
        yield mode, _measure(towers, dict(failed), how)


def in_precision(base: Mapping[str, Any], precision: Number, device: str, widths: list[int] | None = None) -> Tower:
    """`rebuild` in a precision: fp16 is what the library makes bf16, in the other dtype."""
    tower = rebuild({**base, "precision": "fp32" if precision == "fp32" else "bf16"}, device, widths)
    if precision != "fp16":
        return tower
    for tensor in (*tower.visual.parameters(), *tower.visual.buffers()):
        if tensor.dtype == torch.bfloat16:
            tensor.data = tensor.data.to(torch.float16)
    return replace(tower, dtype=torch.float16)


@contextmanager
def _told(failed: dict[str, str], *names: str) -> Iterator[None]:
    """Around what a device, or torch's compiler, may not be able to do: why not, under these names in `failed`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
        failed.update(dict.fromkeys(names, "out of memory" if short else shortened(error, 80)))


@torch.inference_mode()
def _measure(towers: Mapping[str, Tower], failed: dict[str, str], how: Measure) -> Cells:
    cells: Cells = {name: {} for name in (*towers, *failed)}
    seconds, memory = _seconds(towers, failed, how, how.batch_size)
    for name, of_tower in seconds.items():
        cells[name] |= {"images_per_second": quartiles([how.batch_size / one for one in of_tower])}
        cells[name] |= {"memory_bytes": memory[name]} if name in memory else {}
    seconds, _ = _seconds(towers, failed, how, 1)
    for name, of_tower in seconds.items():
        cells[name] |= {"latency_ms": quartiles([1000 * one for one in of_tower])}
    return {name: cell | ({"failed": failed[name]} if name in failed else {}) for name, cell in cells.items()}


def _seconds(
    towers: Mapping[str, Tower], failed: dict[str, str], how: Measure, batch_size: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of every round, and bytes at the peak, of each tower that has not failed before and does not now."""
    runs: dict[str, Callable[[], object]] = {}
    memory: dict[str, int] = {}
    rounds: list[dict[str, float]] = []
    for name in [name for name in towers if name not in failed]:
        with _told(failed, name):
            images_BCSS = images_for(towers[name], batch_size)
            run = partial(towers[name].visual, images_BCSS)
            for _ in range(WARM_UP[how.device.type]):
                run()
            if how.device.type == "cuda":
                memory[name] = _peak(run, how.device) + images_BCSS.nbytes + tower_bytes(towers[name])
            runs[name] = run
    with _told(failed, *runs):
        for seconds in rounds_of(runs, how.device, how.most, how.budget, clock=how.clock) if runs else ():
            rounds.append(seconds)
            how.step(1)
    how.step(how.most - len(rounds))
    return {name: [seconds[name] for seconds in rounds] for name in runs if name not in failed}, memory


def _peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that a run takes of a GPU's memory besides what was there before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def tower_bytes(tower: Tower) -> int:
    """Of the vision tower's parameters and buffers."""
    return tensor_bytes((*tower.visual.parameters(), *tower.visual.buffers()))
