"""From the last block to the first: search a width, slice, go on.

H hidden width, K kept neurons, L blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from amp.config import SearchSettings
from amp.criteria import information_entropy
from amp.distributed import World
from amp.errors import UserError
from amp.mlp import MlpSlot
from amp.runs import progress
from amp.search import search_width
from amp.towers import Tower

Probe = tuple[int, int, float]


@dataclass
class Pruned:
    """What a pruning did: kept neurons by block, and every probe as (block, width, entropy); entropies in nats."""

    kept: list[list[int]]
    dense_entropy: float
    final_entropy: float
    probes: list[Probe] = field(default_factory=list)

    @property
    def entropies(self) -> dict[str, Any]:
        """The part of `prune.json` that the search measured."""
        return {"dense_entropy": self.dense_entropy, "final_entropy": self.final_entropy, "probes": self.probes}


class EntropyMeter:
    """Mean entropy of a tower over fixed held-out batches, in nats; counts what it costs.

    `cost`: `block_forwards` (one block run on one entropy batch counts 1) and `images`, both so far.

    Args:
        batches: local shares of the global batches, held in memory: the same ones, in the same order, every time.
    """

    def __init__(self, tower: Tower, batches: Sequence[Tensor], inverse_temperature: float, world: World) -> None:
        self._tower = tower
        self._batches = batches
        self._inverse_temperature = inverse_temperature
        self._world = world
        self.cost = {"block_forwards": 0, "images": 0}

    @torch.inference_mode()
    def __call__(self) -> float:
        entropies = []
        for images_BCHW in self._batches:
            feature_BD = self._world.gather(self._tower.feature(images_BCHW.to(self._world.device, self._tower.dtype)))
            entropies.append(information_entropy(feature_BD, self._inverse_temperature).double())
            self.cost["block_forwards"] += len(self._tower.slots)
            self.cost["images"] += len(feature_BD)
        # One process decides for all, so that rounding can never part their ways.
        entropy = float(self._world.broadcast(torch.stack(entropies).mean().item()))
        if not math.isfinite(entropy):
            raise RuntimeError(f"the entropy of the held-out images is {entropy}; try model.precision: fp32")
        return entropy


def top_neurons(score_H: Tensor, width: int) -> Tensor:
    """Indices (K,) of the `width` highest scores, ascending; ties go to the lower index."""
    return score_H.cpu().sort(descending=True, stable=True).indices[:width].sort().values


def prune(tower: Tower, scores: Sequence[Tensor], entropy: EntropyMeter, settings: SearchSettings) -> Pruned:
    """Slices `tower` to the given widths, or to those that a search finds. See the two functions below."""
    if settings.widths is not None:
        return prune_to_widths(tower, scores, settings.widths, entropy)
    return prune_by_search(tower, scores, entropy, settings.entropy_increase, settings.search_steps)


def prune_by_search(
    tower: Tower, scores: Sequence[Tensor], entropy: EntropyMeter, entropy_increase: float, search_steps: int
) -> Pruned:
    """Adaptive widths by binary search (AMP, arXiv 2603.08100, section 3); slices `tower` for real.

    A probe is accepted when it adds at most `entropy_increase` nats to the entropy of the network after the previous
    block was settled. That reference is the accepted probe's own value; a block that keeps all leaves it as it was.

    Args:
        scores: (H,) a block, of this tower.
        entropy: measures `tower` as it is at the moment.
    """
    dense = reference = entropy()
    result = Pruned([[] for _ in tower.slots], dense, dense)
    with progress(None, "search", "probe", total=len(tower.slots) * search_steps) as bar:
        for block in reversed(range(len(tower.slots))):
            slot, score_H = tower.slots[block], scores[block]

            def probe(width: int, slot: MlpSlot = slot, score_H: Tensor = score_H) -> float:
                with slot.narrowed(top_neurons(score_H, width)):
                    value = entropy()
                bar.set_postfix_str(f"{slot.name} width {width}: {value:.4f} nats")
                bar.update()
                return value

            found = search_width(probe, slot.hidden_width, reference + entropy_increase, search_steps)
            result.probes += [(block, width, value) for width, value in found.probes]
            result.kept[block] = _keep(tower, block, score_H, found.width)
            reference = reference if found.entropy is None else found.entropy
    result.final_entropy = reference
    return result


def check_widths(tower: Tower, widths: Sequence[int] | None) -> None:
    """Raises UserError unless `widths` has one width a block, none wider than the block."""
    if widths is None:
        return
    if len(widths) != len(tower.slots):
        raise UserError(f"prune.widths: {len(widths)} widths, the tower has {len(tower.slots)} blocks")
    for block, (width, slot) in enumerate(zip(widths, tower.slots, strict=True)):
        if width > slot.hidden_width:
            raise UserError(f"prune.widths: {width} at block {block}, which has {slot.hidden_width} neurons")


def prune_to_widths(tower: Tower, scores: Sequence[Tensor], widths: Sequence[int], entropy: EntropyMeter) -> Pruned:
    """Keeps the top neurons at given widths, one a block; measures the entropy before and after. Raises UserError."""
    check_widths(tower, widths)
    result = Pruned([], entropy(), 0.0)
    result.kept = [_keep(tower, block, score_H, widths[block]) for block, score_H in enumerate(scores)]
    result.final_entropy = entropy()
    return result


def _keep(tower: Tower, block: int, score_H: Tensor, width: int) -> list[int]:
    indices_K = top_neurons(score_H, width)
    tower.slots[block].keep(indices_K)
    return [int(i) for i in indices_K]
