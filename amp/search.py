"""Width search as a pure function of a probe: knows no model."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class WidthFound:
    """A settled block: its width, the entropy at that width if it was probed, and all probes in order."""

    width: int
    entropy: float | None
    probes: tuple[tuple[int, float], ...]


def search_width(probe: Callable[[int], float], hidden_width: int, limit: float, steps: int) -> WidthFound:
    """Smallest probed width whose entropy stays within `limit`, by bisection (AMP, arXiv 2603.08100, section 3).

    Bounds (0, hidden_width); each step probes mid = (lo + hi) // 2; accepted when probe(mid) <= limit, then hi = mid,
    else lo = mid. Stops early once no width lies between the bounds, so a width is never 0.

    Args:
        probe: width -> entropy in nats of the network with the block's top `width` neurons.
        limit: largest entropy accepted, in nats: that of the network so far + entropy_increase.
        steps: probes at most.
    Returns:
        `hidden_width` with entropy None when no probe was accepted.
    """
    low, high = 0, hidden_width
    accepted: float | None = None
    probes = []
    for _ in range(steps):
        middle = (low + high) // 2
        if middle == low:
            break
        entropy = probe(middle)
        probes.append((middle, entropy))
        if entropy <= limit:
            high, accepted = middle, entropy
        else:
            low = middle
    return WidthFound(high, accepted, tuple(probes))
