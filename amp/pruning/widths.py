"""The tower sliced to widths that are given, allocated to a size, or searched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from amp.errors import UserError
from amp.pruning.blocks import WidthsFound, searched_blocks
from amp.pruning.measure.held_out import Look
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.recovery import Recovery
from amp.pruning.size import RelativeSize, Widths, check_counted, sizes_of
from amp.registry import ALLOCATIONS
from amp.run.console import say
from amp.run.world import world
from amp.settings.prune import SearchSettings
from amp.towers import Tower


@dataclass
class Pruned:
    """What a pruning did: kept neurons by block, and what was measured for it; entropies in nats.

    Attributes:
        sizes: `{params: {dense, pruned}, flops: {dense, pruned}}` of the vision tower.
        errors: of every block's output, where compensation refitted it.
        heads, dense_heads: of every block's attention, where heads may be removed.
        feature_cosine: of the pruned and the dense tower's features of a held-out image, on average.
        cosine_before_recovery: the same, before the recovery; None: there was none.
        seen_dense: the entropy and the features of the dense tower's held-out images; None after a search.
    """

    kept: list[list[int]]
    dense_widths: list[int]
    sizes: dict[str, dict[str, int]]
    dense_entropy: float
    final_entropy: float
    num_batches: int
    feature_cosine: float
    found: WidthsFound | None = None
    errors: list[dict[str, float]] = field(default_factory=list)
    cosine_before_recovery: float | None = None
    heads: list[int] = field(default_factory=list)
    dense_heads: list[int] = field(default_factory=list)
    seen_dense: Look | None = None

    @property
    def widths(self) -> list[int]:
        """Hidden width of every block."""
        return [len(indices) for indices in self.kept]

    def without_whole_heads(self, tower: Tower) -> Tower:
        """The pruned tower; one whose heads are all there is as it would be if none might have been removed."""
        return tower if self.heads != self.dense_heads else replace(tower, heads=())

    @property
    def record(self) -> dict[str, Any]:
        """What `prune.json` says of the result."""
        own = {"widths": self.widths, "dense_widths": self.dense_widths, **self.entropies, **self.sizes}
        own |= {"heads": self.heads, "dense_heads": self.dense_heads} if self.heads else {}
        own["feature_cosine"] = self.feature_cosine
        if self.cosine_before_recovery is not None:
            own["feature_cosine_before_recovery"] = self.cosine_before_recovery
        return {**own, "compensation": self.errors} if self.errors else own

    @property
    def entropies(self) -> dict[str, Any]:
        """The part of `prune.json` that was measured."""
        ends: dict[str, Any] = {"dense_entropy": self.dense_entropy, "final_entropy": self.final_entropy}
        if self.found is None:
            return {**ends, "probes": []}
        own = {key: getattr(self.found, key) for key in ("probes", "probe_batches", "dense_batches", "standard_errors")}
        optional = {"found_widths": self.found.found_widths, "share": self.found.share}
        of_size = {"scale": self.found.scale} | {key: value for key, value in optional.items() if value is not None}
        return {**ends, **own, "entropy_increase": self.found.entropy_increase, **of_size}


def check_possible(tower: Tower, asked: Sequence[SearchSettings]) -> None:
    """Raises UserError where the widths do not fit the tower, or no network has the parameters or FLOPs asked for."""
    for settings in asked:
        check_widths(tower, settings)
    check_counted(tower, asked)


def check_widths(tower: Tower, settings: SearchSettings) -> None:
    """Raises UserError unless `prune.widths`, `prune.blocks` and `prune.width_multiple` fit the tower."""
    multiple, widest = settings.multiple_in(max(tower.widths)), max(tower.widths)
    if multiple > widest:
        raise UserError("prune.width_multiple", f"{multiple} is more than the {widest} neurons of the widest block")
    for block in settings.blocks or ():
        if block >= len(tower.slots):
            raise UserError("prune.blocks", f"{block}: the tower has blocks 0 to {len(tower.slots) - 1}")
    if settings.widths is None:
        _check_grid(tower, settings)
        return
    if len(settings.widths) != len(tower.slots):
        raise UserError("prune.widths", f"{len(settings.widths)} widths, but the tower has {len(tower.slots)} blocks")
    for block, (width, slot) in enumerate(zip(settings.widths, tower.slots, strict=True)):
        if width > slot.hidden_width:
            raise UserError("prune.widths", f"{width} for block {block}, which has only {slot.hidden_width} neurons")


def _check_grid(tower: Tower, settings: SearchSettings) -> None:
    """Raises UserError unless some block that may be pruned has a smaller width of the grid."""
    widest = max(tower.slots[block].hidden_width for block in searched_blocks(tower, settings))
    grid = {"width_multiple": settings.multiple_in(max(tower.widths)), "min_width": settings.min_width}
    for key, value in grid.items():
        if value > 1 and value >= widest:
            raise UserError(f"prune.{key}", f"{value}: no block can be narrowed; the widest has {widest} neurons")


def prune(
    networks: NarrowedNetworks,
    settings: SearchSettings,
    size_of: RelativeSize | None = None,
    seen_dense: Look | None = None,
) -> Pruned:
    """Slices the tower to the widths that `settings` give, allocate or search.

    Args:
        size_of: what the tower with these widths has of the dense one's size; needed where `settings.target` is given.
        seen_dense: `Pruned.seen_dense` of an earlier pruning of this tower, on the same images.
    Raises:
        UserError: the widths do not fit the tower, or no widths have the size.
    """
    tower, held_out = networks.tower, networks.held_out
    check_widths(tower, settings)
    counts, found = choose_widths(networks, settings, size_of)
    if found is None:
        dense, features = seen_dense or held_out.look()
    else:
        dense, features = found.dense_entropy, seen_dense[1] if seen_dense else held_out.features()
    dense_widths, dense_heads = tower.widths, tower.num_heads
    of_counts = sizes_of(tower)
    ends = {"dense": of_counts(tower.counts), "pruned": of_counts(counts)}
    sizes = {key: {end: of_end[key] for end, of_end in ends.items()} for key in ("params", "flops")}
    recovery = networks.open_recovery() if networks.open_recovery else None
    kept, errors = networks.keep(counts)
    before = None if recovery is None else _recover(recovery, lambda: mean_cosine(features, held_out.features()))
    # No probe saw widths that are given, nor a compensation, a scale or a recovery that comes after the search.
    unseen = found is None or found.scale != 1 or not networks.seen_as_kept or recovery is not None
    final, own = (found.final_entropy, held_out.features()) if found and not unseen else held_out.look()
    cosine = mean_cosine(features, own)
    measured = sizes, dense, final, held_out.num_batches, cosine, found, errors, before
    return Pruned(kept, dense_widths, *measured, tower.num_heads, dense_heads, None if found else (dense, features))


def _recover(recovery: Recovery, cosine: Callable[[], float]) -> float:
    """Keeps what a recovery has done where held-out images are closer to the dense tower then; the cosine before it."""
    before = cosine()
    recovery.run()
    if not cosine() > before:  # Nor where it is no number.
        recovery.undo()
        say("recovery undone: its steps brought the features of held-out images no closer to the dense ones")
    return before


def mean_cosine(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Of the same images, over all processes; (B, D) of unit length."""
    cosines = torch.cat([(one_BD * other_BD).sum(1) for one_BD, other_BD in zip(ones, others, strict=True)])
    own = torch.stack([cosines.double().sum(), torch.tensor(float(len(cosines)), dtype=torch.float64)])
    total, count = world().sum(own.to(world().device)).tolist()
    return round(total / count, 6)


def choose_widths(
    networks: NarrowedNetworks, settings: SearchSettings, size_of: RelativeSize | None = None
) -> tuple[Widths, WidthsFound | None]:
    """The widths that are given, allocated to a size or searched, and what a search found; the tower stays dense.

    Args and errors: as of `prune`.
    """
    if settings.widths is not None:
        return list(settings.widths), None
    allocation = ALLOCATIONS.load(settings.allocation)
    widths, found = allocation.allocate(networks, settings, size_of)
    return widths, found
