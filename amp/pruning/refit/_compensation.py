"""The compensators of a whole tower, block after block."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from amp.pruning.refit._compensator import Compensator, NormedCompensator
from amp.registry import COMPENSATIONS
from amp.run.console import progress
from amp.run.world import world
from amp.settings.prune import SearchSettings
from amp.statistics.moments import GIGABYTES, MomentCollector, Moments, TokenCollector, last_group
from amp.towers import Tower
from amp.towers.mlps.slots import MlpSlot


class Compensation:
    """The compensators of a dense tower's MLPs: as many at a time as memory allows, when one is first asked for.

    Args:
        orders: (H,) a slot: neurons by rank, first to be kept first.
        run: images (B, C, S, S) through the tower.
        batches: calibration images, this process's share; gone through once for each group of blocks.
        settings: `compensation` names the file that refits, and may have options of its own.
        gigabytes: for the moments of several blocks at once; one block's are always taken.
    """

    def __init__(
        self,
        slots: Sequence[MlpSlot],
        orders: Sequence[Tensor],
        run: Callable[[Tensor], object],
        batches: Iterable[Tensor],
        settings: SearchSettings,
        gigabytes: float = GIGABYTES,
    ) -> None:
        self._slots, self._orders, self._run, self._batches = slots, orders, run, batches
        self._settings, self._gigabytes = settings, gigabytes
        self._made: dict[int, Compensator | NormedCompensator] = {}

    def of(self, block: int) -> Compensator | NormedCompensator:
        """Of a block that, like all before it, is dense; the blocks just before it are prepared with it."""
        if block not in self._made:
            self._made = {}  # The last group goes before the next one comes.
            widths = [slot.hidden_width for slot in self._slots[: block + 1]]
            self._made = self._make(last_group(widths, self._gigabytes))
        return self._made[block]

    def _make(self, group: Sequence[int]) -> dict[int, Compensator | NormedCompensator]:
        method = COMPENSATIONS.load(self._settings.compensation)
        moments, tokens = self._collect(group)
        made: dict[int, Compensator | NormedCompensator] = {}
        for block in group:
            slot = self._slots[block]
            if slot.norm is None:
                made[block] = method.plain(self._settings, slot, self._orders[block], moments.pop(slot.name))
            else:
                made[block] = method.normed(self._settings, slot, tokens.of(slot))
        return made

    def _collect(self, group: Sequence[int]) -> tuple[dict[str, Moments], TokenCollector]:
        plain = [self._slots[block] for block in group if self._slots[block].norm is None]
        normed = [self._slots[block] for block in group if self._slots[block].norm is not None]
        collector, tokens = MomentCollector(plain), TokenCollector(normed)
        with torch.no_grad(), collector, tokens:
            for images_BCHW in progress(self._batches, f"calibration of blocks {group[0]} to {group[-1]}", "batch"):
                self._run(images_BCHW)
        return dict(zip((slot.name for slot in plain), collector.moments(), strict=True)), tokens


def open_compensation(
    tower: Tower, orders: Sequence[Tensor], settings: SearchSettings, images: Callable[[], Iterable[Tensor]]
) -> Compensation | None:
    """What refits the out-projections of a dense tower as `settings` say; None where they say not to.

    Args:
        orders: (H,) a block: neurons by rank, first to be kept first.
        images: -> calibration batches (B, C, S, S), this process's share; asked for where they are needed.
    """
    if settings.compensation == "none":
        return None

    def run(images_BCHW: Tensor) -> None:
        tower.feature(images_BCHW.to(world().device, tower.dtype))

    return Compensation(tower.slots, orders, run, images(), settings)
