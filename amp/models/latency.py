"""Seconds of a tower by the widths of its blocks, on the device that it is on: of one block, and of the whole.

Nothing is copied but the MLPs that are narrow for the moment. B images of a batch, S side in pixels, L blocks.
"""

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from amp.models.throughput import fitting, images_for, seconds_of
from amp.run.console import progress
from amp.towers import Tower

# Rounds of each thing that is compared, one after another, so that a clock that drifts meets all of them alike.
BLOCK_ROUNDS, TOWER_ROUNDS = 5, 7
# A measurement runs for about so long without a pause, in seconds, and so often at most.
SPELL, MOST_RUNS = 0.05, 50

Run = Callable[[], object]


@dataclass
class AlikeBlocks:
    """Blocks of the same shapes, and what the first of them is given.

    Attributes:
        blocks: numbers, ascending.
        inputs, named: of the first one, for a batch.
    """

    blocks: list[int]
    inputs: tuple[Any, ...] = field(repr=False)
    named: Mapping[str, Any] = field(repr=False)


@torch.inference_mode()
def alike_blocks(tower: Tower, batch_size: int) -> list[AlikeBlocks]:
    """The tower's blocks, those of one kind together; one batch passes the tower.

    Raises:
        UserError: under `batch_size`; the batch does not fit the device's memory.
    """
    found: dict[Hashable, AlikeBlocks] = {}

    def watch(block: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def see(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            given = tuple(v.shape for v in (*inputs, *named.values()) if isinstance(v, torch.Tensor))
            shapes = tuple((name, p.shape, p.dtype) for name, p in module.named_parameters())
            kind = found.setdefault((type(module), shapes, given), AlikeBlocks([], inputs, named))
            kind.blocks.append(block)

        return see

    with ExitStack() as hooks, fitting(batch_size):
        for number, block in enumerate(tower.blocks.values()):
            hooks.callback(block.register_forward_pre_hook(watch(number), with_kwargs=True).remove)
        _whole(tower, batch_size)()
    return list(found.values())


@torch.inference_mode()
def block_seconds(tower: Tower, kind: AlikeBlocks, widths: Sequence[int], batch_size: int) -> dict[int, float]:
    """Width -> median seconds of one block of that kind; the tower is left as it was.

    Args:
        widths: of its MLP.
        batch_size: images that `kind` was found with, for messages.
    Raises:
        UserError: as of `alike_blocks`.
    """
    number = kind.blocks[0]
    block, slot = list(tower.blocks.values())[number], tower.slots[number]
    device = slot.out_projection.weight.device

    def run() -> None:
        block(*kind.inputs, **kind.named)

    seconds: dict[int, list[float]] = {width: [] for width in widths}
    with fitting(batch_size):
        runs = _runs(run, device)
        for place in progress(range(BLOCK_ROUNDS * len(widths)), "timing blocks", "width"):
            width = widths[place % len(widths)]
            with slot.narrowed(torch.arange(width)):
                run()
                seconds[width].append(seconds_of(run, device, runs))
    return {width: statistics.median(measured) for width, measured in seconds.items()}


@torch.inference_mode()
def tower_seconds(tower: Tower, batch_size: int) -> float:
    """Median seconds of a batch through the tower as it is.

    Raises:
        UserError: as of `alike_blocks`.
    """
    with fitting(batch_size):
        run, device = _whole(tower, batch_size), tower.device
        _runs(run, device)  # Warms up.
        return statistics.median(seconds_of(run, device) for _ in range(TOWER_ROUNDS))


@torch.inference_mode()
def relative_seconds(tower: Tower, widths: Sequence[int], batch_size: int) -> float:
    """What the tower with these widths takes of the seconds of the dense one, measured in turn; it is left as it was.

    Raises:
        UserError: as of `alike_blocks`.
    """
    shares = []
    with fitting(batch_size):
        run, device = _whole(tower, batch_size), tower.device
        runs = min(_runs(run, device), 20)

        def median() -> float:
            run()
            return statistics.median(seconds_of(run, device) for _ in range(runs))

        for _ in progress(range(TOWER_ROUNDS), "timing dense and pruned", "round"):
            dense = median()
            with ExitStack() as narrowed:
                for slot, width in zip(tower.slots, widths, strict=True):
                    narrowed.enter_context(slot.narrowed(torch.arange(width)))
                shares.append(median() / dense)
    return statistics.median(shares)


def _whole(tower: Tower, batch_size: int) -> Run:
    return partial(tower.visual, images_for(tower, batch_size))


def _runs(run: Run, device: torch.device) -> int:
    """How many runs make a spell, after those that warm up."""
    for _ in range(2):
        run()
    return max(1, min(MOST_RUNS, round(SPELL / max(seconds_of(run, device), 1e-9))))
