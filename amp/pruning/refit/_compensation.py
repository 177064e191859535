"""The compensators of a whole tower, block after block."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from amp.data.batches import Batches
from amp.pruning.measure.store import InputStore
from amp.pruning.refit._compensator import Compensator, NormedCompensator
from amp.registry import COMPENSATIONS
from amp.run.console import progress, say
from amp.run.run import Run
from amp.run.world import world
from amp.settings.prune import PruneConfig, SearchSettings
from amp.statistics.kept_moments import KeptMoments, for_refit, unit_names
from amp.statistics.moments import MomentCollector, TokenCollector, gigabytes_for_moments, last_group, num_sums
from amp.statistics.saved_sums import SavedSums
from amp.towers import MlpSlot, Slot, Tower

CALIBRATION = "calibration_unfinished.safetensors"


class Compensation:
    """The compensators of a dense tower's units, made when they are asked for, from moments of several blocks at once.

    Args:
        orders: (H,) a slot: what enters its out-projection by rank, first to be kept first.
        run: images (B, C, S, S) through the tower.
        batches: calibration images, this process's share; gone through once for each group of blocks.
        settings: `compensation` names the file that refits, and may have options of its own.
        saved: of a name like no other's: the sums of an earlier, killed run to go on from, and the place of this one's;
            None keeps nothing.
        store: of what enters blocks, for a refit of the whole; None: as `auto` of `prune.store`.
        known: moments that a scoring has kept, which are taken where they are of as many batches.
        read: the tokens that the feature reads.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        orders: Sequence[Tensor],
        run: Callable[[Tensor], object],
        batches: Batches | Sequence[Tensor],
        settings: SearchSettings,
        saved: Callable[[str], SavedSums] | None = None,
        store: InputStore | None = None,
        known: KeptMoments | None = None,
        read: Sequence[int] = (),
    ) -> None:
        self._read = read
        num_mlps = sum(isinstance(slot, MlpSlot) for slot in slots)
        self._names = unit_names(num_mlps, num_mlps < len(slots))
        if known is not None and known.num_batches != len(batches):
            say(
                f"note: the stored moments come from {known.num_batches} batches, but prune.num_calibration_samples "
                f"asks for {len(batches)}; the refit reads images instead"
            )
            known = None
        self._known = known
        self._store = store or InputStore("auto", world().device)
        self._slots, self._orders, self._run, self._batches = slots, orders, run, batches
        self._settings, self._saved = settings, saved
        self._gigabytes = gigabytes_for_moments()
        self._group = range(0)
        self._made: tuple[int, Compensator | NormedCompensator] | None = None

    def of(self, block: int) -> Compensator | NormedCompensator:
        """Of a block that, like all before it, is dense."""
        if self._made is None or self._made[0] != block:
            self._made = None  # The last one goes before the next one comes.
            if block not in self._group and not self._knows(block):
                widths = [slot.hidden_width for slot in self._slots[: block + 1]]
                self._collect(last_group(widths, self._gigabytes, num_sums(self._read)))
            self._made = block, self._make(block)
        return self._made[1]

    def _knows(self, block: int) -> bool:
        slot = self._slots[block]
        return self._known is not None and not (isinstance(slot, MlpSlot) and slot.norm is not None)

    @property
    def sees_whole(self) -> bool:
        """As of `refits_whole`."""
        return refits_whole(self._settings)

    def refit_whole(self, tower: Tower, kept: Sequence[Tensor]) -> list[dict[str, float]]:
        """Slices a dense tower for good and refits it; the errors of every block's output.

        Args:
            kept: of each of the tower's `units` what stays, ascending.
        """
        method = COMPENSATIONS.load(self._settings.compensation)
        errors: list[dict[str, float]] = method.refit_whole(
            tower, kept, self._batches, self._settings, self._store, self._saved
        )
        return errors

    def _make(self, block: int) -> Compensator | NormedCompensator:
        method, slot = COMPENSATIONS.load(self._settings.compensation), self._slots[block]
        if isinstance(slot, MlpSlot) and slot.norm is not None:
            normed: NormedCompensator = method.normed(self._settings, slot, self._tokens.of(slot))
            return normed
        known = self._known
        moments = known.of(self._names[block]) if known else for_refit(self._moments, self._plain.index(block))
        plain: Compensator = method.plain(self._settings, slot, self._orders[block], moments)
        return plain

    def _collect(self, group: range) -> None:
        """Sums the moments of some blocks, and keeps tokens of those with a hidden norm."""
        own = [(block, self._slots[block]) for block in group]
        normed = [slot for _, slot in own if isinstance(slot, MlpSlot) and slot.norm is not None]
        self._plain = [block for block, slot in own if slot not in normed]
        self._moments, self._tokens = (
            MomentCollector([self._slots[block] for block in self._plain], read=self._read),
            TokenCollector(normed),
        )
        # Tokens are no sums: they are gathered anew.
        saved = None if self._saved is None or normed else self._saved(f"blocks_{group[0]}_to_{group[-1]}")
        batches, start = self._batches, 0
        if saved is not None and saved.num_batches:
            saved.restore(self._moments)
            start = saved.num_batches
            say(f"resuming the calibration after batch {start} of {len(batches)}")
        remaining = batches.epoch(0, start) if isinstance(batches, Batches) else batches[start:]
        about = f"calibration of blocks {group[0]} to {group[-1]}"
        with torch.no_grad(), self._moments, self._tokens:
            for images_BCHW in progress(remaining, about, "batch", total=len(batches), initial=start):
                self._run(images_BCHW)
                if saved is not None:
                    saved.step(self._moments)
        if saved is not None and start < len(batches):
            saved.settle(self._moments)
        self._group = group


def refits_whole(settings: SearchSettings) -> bool:
    """Whether the sliced network is refitted as a whole, in the place of each block by itself."""
    return settings.compensation != "none" and hasattr(COMPENSATIONS.load(settings.compensation), "refit_whole")


def calibration_sums(run: Run[PruneConfig]) -> Callable[[str], SavedSums]:
    """Where a run keeps the sums of its calibration: the file of each group of blocks, by the group's name."""
    own = run.path(CALIBRATION)

    def saved(name: str) -> SavedSums:
        path = own.with_stem(f"{own.stem}.{name}")
        return SavedSums(path, run.header, run.config.score.save_every, "delete it to calibrate again")

    return saved


def open_compensation(
    tower: Tower,
    orders: Sequence[Tensor],
    settings: SearchSettings,
    images: Callable[[], Batches | Sequence[Tensor]],
    saved: Callable[[str], SavedSums] | None = None,
    store: InputStore | None = None,
    known: KeptMoments | None = None,
) -> Compensation | None:
    """What refits the out-projections of a dense tower as `settings` say; None where they say not to.

    Args:
        orders: (H,) for each of the tower's `units`: what enters its out-projection by rank, first to be kept first.
        images: -> calibration batches (B, C, S, S), this process's share; asked for where they are needed.
        saved, store, known: as of `Compensation`.
    """
    if settings.compensation == "none":
        return None

    def run(images_BCHW: Tensor) -> None:
        tower.feature(images_BCHW.to(world().device, tower.dtype))

    return Compensation(
        tower.units, orders, run, images(), settings, saved=saved, store=store, known=known, read=tower.read_tokens
    )
