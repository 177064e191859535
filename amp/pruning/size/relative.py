"""What a tower with given widths has of the dense one's size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from amp.errors import UserError
from amp.models.sizes import count_by_width, count_params, neuron_params
from amp.pruning.measure.journal import Journal
from amp.settings.prune import TargetSettings
from amp.towers import Tower, on_meta

# A width of one block, or an array of them -> what they save of the dense tower's size; less the wider they are.
Saving = Callable[[Any], Any]

# What the shares are of, by the target.
UNITS = {"params": "parameters", "flops": "FLOPs", "throughput": "seconds", "latency": "latency"}
CLOSE = 5e-3  # of a size: as near as is asked for, wherever the widths can


@dataclass(frozen=True)
class RelativeSize:
    """Widths, one a block -> what the tower has of the dense one's size: all of it, but what each block saves.

    Attributes:
        savings: of every block; 0 at its dense width.
    """

    savings: tuple[Saving, ...]

    def __call__(self, widths: Sequence[float]) -> float:
        return float(1 - sum(saving(width) for saving, width in zip(self.savings, widths, strict=True)))

    def measure(self, widths: Sequence[int]) -> float:
        """The same; of a clock where there is one."""
        return self(widths)


def of_neurons(dense: Sequence[int], cost: Sequence[float]) -> RelativeSize:
    """A size that falls by the same with every neuron of a block.

    Args:
        dense: widths.
        cost: of one neuron of each block, of the dense tower's size.
    """

    def saving(whole: int, one: float) -> Saving:
        return lambda width: (whole - width) * one

    return RelativeSize(tuple(map(saving, dense, cost)))


def counted_size(key: str, tower: Tower) -> RelativeSize:
    """What a tower has of the dense one's parameters or FLOPs.

    Args:
        key: params or flops.
        tower: dense.
    """
    sizes, dense = sizes_of(tower), tower.counts
    whole = sizes(dense)[key]
    without = [sizes([w - (other == block) for other, w in enumerate(dense)])[key] for block in range(len(dense))]
    return of_neurons(dense, [(whole - less) / whole for less in without])


def sizes_of(tower: Tower) -> Callable[[Sequence[int]], dict[str, int]]:
    """Counts, as of `Tower.counts`, -> `{params, flops}` of the tower, counted on meta tensors."""
    return count_by_width(on_meta(tower))


def params_of_widths(tower: Tower, widths: Sequence[int]) -> int:
    """Parameters of the vision tower, whose MLPs are dense, with these widths."""
    slots = zip(tower.slots, widths, strict=True)
    return count_params(tower) - sum((slot.hidden_width - width) * neuron_params(slot) for slot, width in slots)


def out_of_reach(target: TargetSettings, size: float, which: str, journal: Journal | None = None) -> UserError:
    """That no network of the settings has the size asked for.

    Args:
        size: of the dense tower's, or of its seconds, that is left of the network that comes closest.
        which: what that network is, in words.
        journal: of what was measured before that was known.
    """
    assert target.asked is not None
    key, value = target.asked
    says = f"{1 / size:.3g} times the dense speed" if key == "throughput" else f"{size:.3g} of the dense {UNITS[key]}"
    kept = f"; the measurements are kept in {journal.file}" if journal and journal.file else ""
    return UserError(f"prune.target.{key}", f"{value:g}: out of reach; {which} has {says}{kept}")
