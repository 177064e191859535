"""From the last block to the first: search a width, go on; then slice."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from amp.candidates import Candidates
from amp.config import SearchSettings
from amp.errors import UserError
from amp.racing import Race, Series
from amp.runs import progress, say
from amp.search import Limits, next_threshold, search_width
from amp.towers import Tower

Probe = tuple[int, int, float]
# A target's: thresholds in nats that are tried, how many, and how near to the size is near enough.
SMALLEST, LARGEST, TRIALS, NEAR = 1e-7, 1e3, 12, 0.01
# Of `Race`: confidence, tolerance as a share of entropy_increase, steps, sure.
PRESETS = {"strict": (3.5, 0.0, 1.0, 3.0), "fast": (3.0, 0.25, 0.0, 0.0)}


@dataclass
class WidthsFound:
    """What a search found; entropies in nats.

    Attributes:
        widths: of every block, first to last.
        probes: (block, width, entropy), in order.
        probe_batches: how many batches each probe took.
        dense_batches: on how many batches the dense entropy was measured; the others are differences to it.
        entropy_increase: that a block might add.
        scale: by which the widths that the search found were multiplied, to meet a size.
    """

    widths: list[int]
    entropy_increase: float
    dense_entropy: float = 0.0
    final_entropy: float = 0.0
    dense_batches: int = 0
    probes: list[Probe] = field(default_factory=list)
    probe_batches: list[int] = field(default_factory=list)
    scale: float = 1.0


@dataclass
class Pruned:
    """What a pruning did: kept neurons by block, and what was measured for it; entropies in nats."""

    kept: list[list[int]]
    dense_entropy: float
    final_entropy: float
    found: WidthsFound | None = None
    errors: list[dict[str, float]] = field(default_factory=list)

    @property
    def entropies(self) -> dict[str, Any]:
        """The part of `prune.json` that was measured."""
        ends = {"dense_entropy": self.dense_entropy, "final_entropy": self.final_entropy}
        if self.found is None:
            return {**ends, "probes": []}
        own = {key: getattr(self.found, key) for key in ("probes", "probe_batches", "dense_batches")}
        return {**ends, **own, "entropy_increase": self.found.entropy_increase, "scale": self.found.scale}


class BlockSearch:
    """The search of one block: its probes are compared with the network so far, on the same batches.

    Args:
        limits: of the search; of the differences accepted, in nats.
    """

    def __init__(self, candidates: Candidates, block: int, race: Race, limits: Limits) -> None:
        whole = candidates.tower.widths[block]
        self._candidates, self._block, self._race, self._limits = candidates, block, race, limits
        self._grid = max(limits.multiple, whole / 2**limits.steps)
        self._reference = self._series(whole)
        self._probes: list[Series] = []
        self._found = {whole: 0.0}

    @property
    def num_batches(self) -> list[int]:
        """Of the network so far, and of every probe in order."""
        return [len(one) for one in (self._reference, *self._probes)]

    def probe(self, width: int) -> float:
        """What the block's top `width` neurons alone add to the entropy, as exactly as the decision needs it."""
        others, one = list(self._probes), self._series(width)
        self._probes.append(one)
        # The curve of entropy over width falls more steeply here than between here and the next known width.
        wider = min(known for known in self._found if known > width)
        step = max(0.0, self._limits.high - self._found[wider]) * self._grid / (wider - width)
        value = self._race.run(one, self._reference, others, self._limits.low, self._limits.high, step)
        self._found[width] = value
        return value

    def _series(self, width: int) -> Series:
        return Series(width, lambda count: self._candidates.entropies(self._block, width, count))


def find_widths(
    candidates: Candidates, settings: SearchSettings, entropy_increase: float, num_batches: int | None = None
) -> WidthsFound:
    """Adaptive widths by binary search (AMP, arXiv 2603.08100, section 3); the tower is left as it was.

    A probe is accepted when it adds at most `entropy_increase` nats to the entropy of the network after the previous
    block was settled. That reference is the accepted probe's own value; a block that keeps all leaves it as it was.

    Args:
        num_batches: the first ones alone decide; None: all.
    """
    tower, dense = candidates.tower, candidates.tower.widths
    race = _race(settings, num_batches or candidates.meter.num_batches, entropy_increase)
    found = WidthsFound(list(dense), entropy_increase)
    drift, bound = 0.0, settings.total_increase or math.inf
    blocks = _searched(tower, settings)
    with ExitStack() as settled, progress(None, "search", "probe", len(blocks) * settings.search_steps) as bar:
        for block in blocks:
            high = min(entropy_increase, bound - drift)
            low = -min(entropy_increase, bound + drift) if settings.two_sided else -math.inf
            limits = Limits(high, low, settings.search_steps, settings.width_multiple, settings.min_width)
            search = BlockSearch(candidates, block, race, limits)

            def probe(width: int, search: BlockSearch = search, name: str = tower.slots[block].name) -> float:
                value = search.probe(width)
                bar.set_postfix_str(f"{name} width {width}: {value:+.4f} nats")
                bar.update()
                return value

            one = search_width(probe, tower.widths[block], limits)
            found.probes += [(block, width, drift + value) for width, value in one.probes]
            of_reference, *of_probes = search.num_batches
            found.probe_batches += of_probes
            if found.widths == dense:
                found.dense_batches = of_reference
            if one.value is not None:
                found.widths[block], found.final_entropy = one.width, drift + one.value
                drift = found.final_entropy
                settled.enter_context(candidates.narrowed(block, one.width))
    return _above_dense(found, candidates)


def _race(settings: SearchSettings, population: int, entropy_increase: float) -> Race:
    if settings.search != "racing":
        return Race(population)
    confidence, share, steps, sure = PRESETS[settings.preset]
    share = share if settings.tolerance is None else settings.tolerance
    return Race(population, settings.confidence or confidence, share * entropy_increase, steps, sure)


def _searched(tower: Tower, settings: SearchSettings) -> list[int]:
    """Last to first."""
    blocks = range(len(tower.slots)) if settings.blocks is None else settings.blocks
    return sorted(set(blocks), reverse=True)


def _above_dense(found: WidthsFound, candidates: Candidates) -> WidthsFound:
    """Entropies in the place of differences to the dense network's."""
    last = len(candidates.tower.slots) - 1
    found.dense_batches = found.dense_batches or candidates.meter.num_batches
    values = candidates.entropies(last, candidates.tower.widths[last], found.dense_batches)
    found.dense_entropy = math.fsum(values) / len(values)
    found.final_entropy += found.dense_entropy
    found.probes = [(block, width, found.dense_entropy + value) for block, width, value in found.probes]
    return found


def check_widths(tower: Tower, settings: SearchSettings) -> None:
    """Raises UserError unless `prune.widths` and `prune.blocks` fit the tower."""
    for block in settings.blocks or ():
        if block >= len(tower.slots):
            raise UserError(f"prune.blocks: {block}: the tower has blocks 0 to {len(tower.slots) - 1}")
    if settings.widths is None:
        return
    if len(settings.widths) != len(tower.slots):
        raise UserError(f"prune.widths: {len(settings.widths)} widths, the tower has {len(tower.slots)} blocks")
    for block, (width, slot) in enumerate(zip(settings.widths, tower.slots, strict=True)):
        if width > slot.hidden_width:
            raise UserError(f"prune.widths: {width} at block {block}, which has {slot.hidden_width} neurons")


def prune(
    candidates: Candidates, settings: SearchSettings, share: Callable[[Sequence[int]], float] | None = None
) -> Pruned:
    """Slices the tower to the given widths, or to those that a search finds.

    Args:
        share: what the tower with these widths has of the dense one's size; needed where `settings.target` is given.
    """
    check_widths(candidates.tower, settings)
    if settings.widths is not None:
        dense = candidates.mean()
        kept, errors = candidates.keep(settings.widths)
        return Pruned(kept, dense, candidates.mean(), errors=errors)
    if asked := settings.target.asked:
        assert share is not None
        key, target = asked
        found = find_size(candidates, settings, share, 1 / target if key == "throughput" else target)
    else:
        found = find_widths(candidates, settings, settings.entropy_increase)
    kept, errors = candidates.keep(found.widths)
    # Compensation or a scale that no probe saw changes the network that was found.
    unseen = found.scale != 1 or (errors and not candidates.in_search)
    final = candidates.mean() if unseen else found.final_entropy
    return Pruned(kept, found.dense_entropy, final, found, errors)


def find_size(
    candidates: Candidates, settings: SearchSettings, share: Callable[[Sequence[int]], float], target: float
) -> WidthsFound:
    """The widths of the threshold whose network has the share `target` of the dense one's size, within 1 %.

    Thresholds are tried by racing on the first eighth of the batches; then the search that was asked for runs at the
    one found, and once or twice more where its own size is off.

    Raises:
        UserError: no threshold gives that size.
    """
    trial, few = settings, candidates.meter.num_batches
    if settings.search != "racing":
        trial = settings.model_copy(
            update={"search": "racing", "preset": "fast", "confidence": None, "tolerance": None}
        )
        few = max(1, few // 8)
    tried: dict[float, float] = {}
    threshold = settings.entropy_increase or SMALLEST
    while True:
        tried[threshold] = share(find_widths(candidates, trial, threshold, few).widths)
        say(f"threshold {threshold:.3g} nats: {tried[threshold]:.3f} of the size, {target:.3f} wanted")
        if abs(tried[threshold] / target - 1) <= NEAR / 2 or len(tried) == TRIALS:
            break
        threshold = next_threshold(tried, target)
        if not SMALLEST <= threshold <= LARGEST:
            sizes = " to ".join(f"{size:.3f}" for size in (min(tried.values()), max(tried.values())))
            raise UserError(f"prune.target: {target:.3f} of the size is out of reach; thresholds gave {sizes}")
    threshold = min(tried, key=lambda one: abs(tried[one] - target))
    off, best = 0.0, None
    for _ in range(3):
        found = find_widths(candidates, settings, threshold)
        reached = share(found.widths)
        if best is None or abs(reached - target) < abs(best[0] - target):
            best = (reached, found)
        if abs(reached / target - 1) <= NEAR:
            break
        # The trials' curve has the slope; this search says how far it lies from it.
        off = reached - tried.get(threshold, target - off)
        threshold = next_threshold(tried, target - off)
    assert best is not None
    return best[1] if abs(best[0] / target - 1) <= NEAR else _scale_to(best[1], candidates, settings, share, target)


def _scale_to(
    found: WidthsFound,
    candidates: Candidates,
    settings: SearchSettings,
    share: Callable[[Sequence[int]], float],
    target: float,
) -> WidthsFound:
    """The widths found, all times the one factor that meets the size: near it, thresholds jump by whole grid steps."""
    dense, least, grid = candidates.tower.widths, settings.min_width, settings.width_multiple
    blocks = set(_searched(candidates.tower, settings))

    def scaled(factor: float) -> list[int]:
        wanted = [max(least, grid, round(width * factor / grid) * grid) for width in found.widths]
        return [min(w, whole) if i in blocks else whole for i, (w, whole) in enumerate(zip(wanted, dense, strict=True))]

    low, high = 0.5, 2.0
    for _ in range(20):
        factor = (low + high) / 2
        reached = share(scaled(factor))
        if abs(reached / target - 1) <= NEAR / 2:
            break
        low, high = (factor, high) if reached < target else (low, factor)
    found.widths, found.scale = scaled(factor), factor
    say(f"the widths of {found.entropy_increase:.3g} nats, times {factor:.3f}: {reached:.3f} of the size")
    return found
