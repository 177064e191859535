"""The search of the widths: from the last block to the first, each under one threshold."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from amp.pruning.bisection import Limits, search_width
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.progress import SearchProgress
from amp.pruning.search import Judge, Series, search_of
from amp.settings.prune import SearchSettings
from amp.towers import Tower

Probe = tuple[int, int, float]
NEAR = 4  # steps of the widths


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
        found_widths: those that were multiplied; None where no factor was needed.
        share: of the dense tower's size at these widths, where one was asked for.
        standard_errors: of what each settled block adds, as another choice of images would move it; None of one
            batch.
    """

    widths: list[int]
    entropy_increase: float
    dense_entropy: float = 0.0
    final_entropy: float = 0.0
    dense_batches: int = 0
    probes: list[Probe] = field(default_factory=list)
    probe_batches: list[int] = field(default_factory=list)
    scale: float = 1.0
    found_widths: list[int] | None = None
    share: float | None = None
    standard_errors: list[float | None] = field(default_factory=list)


class BlockSearch:
    """The search of one block: its probes are compared with the network so far, on the same batches.

    Args:
        limits: of the search; of the differences accepted, in nats.
        beside: networks that cannot be measured any more, and tell of the probes all the same.

    Attributes:
        reference: the network so far.
    """

    def __init__(
        self, networks: NarrowedNetworks, block: int, judge: Judge, limits: Limits, beside: Sequence[Series] = ()
    ) -> None:
        whole = networks.tower.widths[block]
        self._networks, self._block, self._judge, self._limits = networks, block, judge, limits
        self._grid = max(limits.multiple, whole / 2**limits.steps)
        self.reference = self._series(whole)
        self._beside = beside
        self._probes: list[Series] = []
        self._found = {whole: 0.0}

    @property
    def num_batches(self) -> list[int]:
        """Of every probe in order."""
        return [len(one) for one in self._probes]

    def standard_error(self, width: int, num_batches: int) -> float | None:
        """Of what a probed width adds, in nats, if `num_batches` batches of other images decided; None: not known."""
        one = next(probe for probe in self._probes if probe.width == width)
        differences = one.values - self.reference.values[: len(one)]
        return float(differences.std(ddof=1)) / math.sqrt(num_batches) if len(one) > 1 else None

    def probe(self, width: int) -> float:
        """What the block's top `width` neurons alone add to the entropy, as exactly as the decision needs it."""
        others, one = [*self._probes, *self._beside], self._series(width)
        self._probes.append(one)
        # The curve of entropy over width falls more steeply here than between here and a known width nearby; one far
        # away says nothing, since the curve may be flat between.
        wider = min(known for known in self._found if known > width)
        near = wider - width <= NEAR * self._grid
        step = max(0.0, self._limits.high - self._found[wider]) * self._grid / (wider - width) if near else 0.0
        value = self._judge.decide(one, self.reference, others, self._limits.low, self._limits.high, step)
        self._found[width] = value
        return value

    def _series(self, width: int) -> Series:
        return Series(width, lambda count: self._networks.entropies(self._block, width, count))


def search_blocks(
    networks: NarrowedNetworks,
    settings: SearchSettings,
    entropy_increase: float,
    num_batches: int | None = None,
    told: SearchProgress | None = None,
) -> WidthsFound:
    """A width for each block by binary search (AMP, arXiv 2603.08100, section 3); the tower is left as it was.

    A probe is accepted when it adds at most `entropy_increase` nats to the entropy of the network after the previous
    block was settled. That reference is the accepted probe's own value; a block that keeps all leaves it as it was.

    Args:
        num_batches: the first ones alone decide; None: all.
        told: of several searches; None: it is the only one.
    """
    tower, dense = networks.tower, networks.tower.widths
    num_batches = num_batches or networks.held_out.num_batches
    found = WidthsFound(list(dense), entropy_increase)
    drift, bound = 0.0, settings.total_increase or math.inf
    blocks = searched_blocks(tower, settings)
    beside: list[Series] = []
    multiple = settings.multiple_in(max(dense))
    bar = told or SearchProgress("search", len(blocks) * settings.search_steps).next()
    with ExitStack() as settled:
        for place, block in enumerate(blocks):
            bar.block(place + 1, len(blocks), place * settings.search_steps)
            high = min(entropy_increase, bound - drift)
            low = -min(entropy_increase, bound + drift) if settings.two_sided else -math.inf
            limits = Limits(high, low, settings.search_steps, multiple, settings.min_width)
            judge = search_of(settings).judge(settings, num_batches, entropy_increase, block, len(dense))
            search = BlockSearch(networks, block, judge, limits, beside)

            def probe(width: int, search: BlockSearch = search, name: str = tower.slots[block].name) -> float:
                value = search.probe(width)
                bar.probe(f"{name} width {width}: {value:+.4f} nats")
                return value

            one = search_width(probe, tower.widths[block], limits)
            found.probes += [(block, width, drift + value) for width, value in one.probes]
            found.probe_batches += search.num_batches
            if found.widths == dense:
                found.dense_batches = len(search.reference)
            if one.value is not None:
                beside = beside or [search.reference.frozen()]
                found.widths[block], found.final_entropy = one.width, drift + one.value
                drift = found.final_entropy
                found.standard_errors.append(search.standard_error(one.width, num_batches))
                settled.enter_context(networks.narrowed(block, one.width))
        if told is None:
            bar.close()
    return _above_dense(found, networks)


def searched_blocks(tower: Tower, settings: SearchSettings) -> list[int]:
    """Last to first."""
    blocks = range(len(tower.slots)) if settings.blocks is None else settings.blocks
    return sorted(set(blocks), reverse=True)


def _above_dense(found: WidthsFound, networks: NarrowedNetworks) -> WidthsFound:
    """Entropies in the place of differences to the dense network's."""
    last = len(networks.tower.slots) - 1
    found.dense_batches = found.dense_batches or networks.held_out.num_batches
    values = networks.entropies(last, networks.tower.widths[last], found.dense_batches)
    found.dense_entropy = math.fsum(values) / len(values)
    found.final_entropy += found.dense_entropy
    found.probes = [(block, width, found.dense_entropy + value) for block, width, value in found.probes]
    return found
