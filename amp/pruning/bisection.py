"""The width of one block by bisection: a pure function of a probe that knows no model."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class WidthFound:
    """A settled block: its width, the value at that width if it was probed, and all probes in order."""

    width: int
    value: float | None
    probes: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Limits:
    """What a search of one block may do.

    Attributes:
        high: largest value accepted.
        low: smallest value accepted.
        steps: probes at most.
        multiple: of which every width is one, except the whole block's.
        min_width: no width is smaller, unless the block is.
    """

    high: float
    low: float = -math.inf
    steps: int = 6
    multiple: int = 1
    min_width: int = 1


def search_width(probe: Callable[[int], float], hidden_width: int, limits: Limits) -> WidthFound:
    """Smallest probed width whose value stays within the limits, by bisection (AMP, arXiv 2603.08100, section 3).

    Bounds (0, hidden_width); each step probes mid = (lo + hi) // 2; accepted when probe(mid) <= high, then hi = mid,
    else lo = mid. Stops early once no width lies between the bounds, so a width is never 0. With a `multiple` m the
    bounds count m neurons.

    Args:
        probe: width -> what the network with the block's top `width` neurons has more than the network so far: nats.
    Returns:
        `hidden_width` with value None when no probe was accepted.
    """
    low = math.ceil(limits.min_width / limits.multiple) - 1
    high = math.ceil(hidden_width / limits.multiple)
    width, accepted = hidden_width, None
    probes = []
    for _ in range(limits.steps):
        middle = (low + high) // 2
        if middle <= low:
            break
        value = probe(middle * limits.multiple)
        probes.append((middle * limits.multiple, value))
        if limits.low <= value <= limits.high:
            high, width, accepted = middle, middle * limits.multiple, value
        else:
            low = middle
    return WidthFound(width, accepted, tuple(probes))
