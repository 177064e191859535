"""The one way to a size: what a tower with given widths has of the dense one's, and the widths that meet a share of it.

A size is parameters or FLOPs, counted, or the seconds of an image, measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from amp.errors import UserError, under
from amp.models.sizes import count_by_width, count_params, neuron_params
from amp.models.throughput import measure_throughput
from amp.pruning.measure.journal import Journal
from amp.run.world import world
from amp.settings.prune import TargetSettings
from amp.towers import Tower, duplicate, on_meta

Widths = list[int]
# Widths, one a block -> what the tower has of the dense one's size.
RelativeSize = Callable[[Sequence[int]], float]

CLOSE = 1e-3  # of a size
THROUGHPUT_BATCH, THROUGHPUT_ROUNDS = 64, 20


def out_of_reach(target: TargetSettings, size: float, which: str, journal: Journal | None = None) -> UserError:
    """That no network of the settings has the size asked for.

    Args:
        size: of the dense tower's, or of its seconds an image, that is left of the network that comes closest.
        which: what that network is, in words.
        journal: of what was measured before that was known.
    """
    assert target.asked is not None
    key, value = target.asked
    size, unit = (1 / size, "times the dense speed") if key == "throughput" else (size, "of the dense size")
    kept = f"; {journal.file} keeps what was measured for it" if journal and journal.file else ""
    return UserError(f"prune.target.{key}", f"{value:g}: out of reach; {which} has {size:.3g} {unit}{kept}")


def params_of_widths(tower: Tower, widths: Sequence[int]) -> int:
    """Parameters of the vision tower, whose MLPs are dense, with these widths."""
    slots = zip(tower.slots, widths, strict=True)
    return count_params(tower) - sum((slot.hidden_width - width) * neuron_params(slot) for slot, width in slots)


def sizes_of(tower: Tower) -> Callable[[Sequence[int]], dict[str, int]]:
    """Widths -> `{params, flops}` of the tower, counted on meta tensors."""
    return count_by_width(on_meta(tower))


def relative_size(key: str, tower: Tower, journal: Journal) -> RelativeSize:
    """What a tower has of the dense one's parameters, FLOPs or, for `throughput`, seconds an image.

    Args:
        key: params, flops or throughput.
        journal: keeps the seconds, so that a search that goes on decides by those that it has measured before.
    """
    if key != "throughput":
        sizes = sizes_of(tower)
        dense = sizes(tower.widths)[key]
        return lambda widths: sizes(widths)[key] / dense

    def seconds(widths: Sequence[int]) -> float:
        narrow = duplicate(tower)
        for slot, width in zip(narrow.slots, widths, strict=True):
            slot.keep(torch.arange(width))
        towers = {"dense": tower, "pruned": narrow}
        with under("prune.target.throughput", instead_of="batch_size"):
            rates = measure_throughput(towers, THROUGHPUT_BATCH, THROUGHPUT_ROUNDS)
        return float(world().broadcast(rates["dense"]["median"] / rates["pruned"]["median"]))

    return lambda widths: journal.size(tuple(widths), lambda: seconds(widths))


@dataclass(frozen=True)
class SizeMet:
    """Widths of a family, at which of its members they are, and what size their tower has of the dense one's."""

    widths: Widths
    at: float
    size: float


def meet_size(
    family: Callable[[float], Widths],
    size_of: RelativeSize,
    target: float,
    low: float = 0.0,
    high: float = 1.0,
    close: float = CLOSE,
    steps: int = 20,
) -> SizeMet:
    """The member of a family of widths whose tower comes closest to a size, by bisection.

    The least member comes first: where it is too large, no other one is tried.

    Args:
        family: number -> widths, none of which falls as the number grows.
        target: of the dense tower's size.
        low, high: of the numbers.
        close: as near as is near enough, of the target.
        steps: of the bisection, at most.
    """
    first = at = low
    best: SizeMet | None = None
    for _ in range(steps + 1):
        widths = family(at)
        tried = SizeMet(widths, at, size_of(widths))
        off = tried.size / target - 1
        if best is None or abs(off) < abs(best.size / target - 1):
            best = tried
        if abs(off) <= close or (at == first and off > 0):
            break
        low, high = (at, high) if off < 0 else (low, at)
        at = (low + high) / 2
    assert best is not None
    return best


def scaled(widths: Sequence[int], dense: Sequence[int], factor: float, multiple: int = 1, least: int = 1) -> Widths:
    """All widths times one factor, in whole multiples, at least `least` and at most those of the dense tower."""
    wanted = [max(least, multiple, round(width * factor / multiple) * multiple) for width in widths]
    return [min(width, whole) for width, whole in zip(wanted, dense, strict=True)]
