"""The search of the tests of the pruning, and a meter that is any function of the widths."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from amp.pruning import Pruned, prune_by_search
from amp.towers import Tower

INCREASE, STEPS = 1e-2, 6


class ScriptedMeter:
    """Any function of the tower's widths in the place of its entropy; remembers the widths it was asked of."""

    def __init__(self, tower: Tower, entropy: Callable[[list[int]], float]) -> None:
        self.tower, self.entropy = tower, entropy
        self.asked: list[list[int]] = []

    def __call__(self) -> float:
        self.asked.append(self.tower.widths)
        return self.entropy(self.tower.widths)


def search(tower: Tower, scores: Sequence[Tensor], meter: Any, increase: float = INCREASE) -> Pruned:
    return prune_by_search(tower, scores, meter, increase, STEPS)
