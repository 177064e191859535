"""The search of the tests of the pruning, and an entropy that is any function of the widths."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amp.pruning.measure.journal import Journal
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.widths import Pruned, prune
from amp.settings.prune import SearchSettings
from amp.towers import Tower

INCREASE, STEPS = 1e-2, 6


class ScriptedEntropy:
    """Any function of the tower's widths in the place of its entropy; remembers the widths it was asked of."""

    def __init__(self, tower: Tower, entropy: Callable[[list[int]], float]) -> None:
        self.tower, self.entropy = tower, entropy
        self.asked: list[list[int]] = []
        self.num_batches = 1

    def measure(self, block: int, batches: range) -> list[float]:
        self.asked.append(self.tower.widths)
        return [self.entropy(self.tower.widths)]

    def charge(self, block: int, batches: range) -> None:
        pass

    def look(self) -> tuple[float, list[Tensor]]:
        return self.measure(0, range(1))[0], self.features()

    def features(self) -> list[Tensor]:
        return [torch.eye(2)]


def networks_of(tower: Tower, scores: Sequence[Tensor], held_out: Any) -> NarrowedNetworks:
    return NarrowedNetworks(tower, scores, held_out, Journal())


def search(tower: Tower, scores: Sequence[Tensor], held_out: Any, increase: float = INCREASE, **others: Any) -> Pruned:
    settings = SearchSettings(entropy_increase=increase, search_steps=STEPS, **others)
    return prune(networks_of(tower, scores, held_out), settings)
