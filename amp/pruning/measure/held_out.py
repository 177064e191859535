"""The entropy of a tower over fixed held-out batches, and what measuring it costs."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.data.batches import Batches
from amp.errors import UserError
from amp.pruning.measure.replay import Replay
from amp.pruning.measure.store import InputStore
from amp.run.world import world
from amp.statistics.entropy import information_entropy
from amp.towers import Tower

Look = tuple[float, list[Tensor]]  # what `HeldOutEntropy.look` gives


class HeldOutEntropy:
    """Entropy of a tower, as it is at the moment, on each of the same batches in the same order; counts what it costs.

    `cost`: `block_forwards` (one block run on one entropy batch counts 1) and `images`, both so far.

    Args:
        batches: local shares of the global batches; each is read once, when it is first needed.
        store: where images and blocks' inputs are kept; None: as `auto` of `prune.store`.
        every: the inputs of every n-th block are kept; None: none, every run starts from the images.
    """

    def __init__(
        self,
        tower: Tower,
        batches: Batches | Sequence[Tensor],
        inverse_temperature: float,
        store: InputStore | None = None,
        every: int | None = None,
    ) -> None:
        self.num_batches = len(batches)
        self._inverse_temperature = inverse_temperature
        self._replay = Replay(tower, batches, store or InputStore("auto", world().device), every)
        self._forwards = ForwardCounter(len(tower.blocks), every)
        self.cost = {"block_forwards": 0, "images": 0}

    def __call__(self) -> float:
        """Mean over all batches, in nats."""
        return math.fsum(self.measure(0, range(self.num_batches))) / self.num_batches

    @torch.inference_mode()
    def measure(self, block: int, batches: range) -> list[float]:
        """The entropy of each of the batches, in nats, of a tower whose blocks before `block` are dense.

        Raises:
            UserError: an entropy is not finite.
        """
        self.charge(block, batches)
        return self._agreed(self._replay.map(block, batches, self._entropy))

    @torch.inference_mode()
    def look(self) -> Look:
        """The entropy of the tower as it is, over all batches, in nats; and the features that it is of.

        (B, D) fp32 on the CPU for each batch: this process's images, of unit length.
        """
        batches = range(self.num_batches)
        self.charge(0, batches)

        def both(own_BD: Tensor) -> tuple[Tensor, Tensor]:
            return self._entropy(own_BD), _unit(own_BD)

        entropies, features = zip(*self._replay.map(0, batches, both), strict=True)
        return math.fsum(self._agreed(entropies)) / self.num_batches, list(features)

    def _agreed(self, entropies: Sequence[Tensor]) -> list[float]:
        # One process decides for all, so that rounding can never part their ways.
        values: list[float] = world().broadcast(torch.stack(list(entropies)).tolist())
        if not all(map(math.isfinite, values)):
            raise UserError(
                "model.precision",
                "the entropy of the held-out images is not finite; use fp32, which has the widest range",
            )
        return values

    @torch.inference_mode()
    def features(self) -> list[Tensor]:
        """As `look` gives them; they decide on nothing, and are not counted as a search's cost."""
        return self._replay.map(0, range(self.num_batches), _unit)

    @property
    def stored_bytes(self) -> int:
        """What this process will keep at most, in bytes."""
        return self._replay.stored_bytes

    def close(self) -> None:
        """Forgets images and inputs."""
        self._replay.close()

    def charge(self, block: int, batches: range) -> None:
        """Counts a measurement, also one that an earlier run of the same search paid."""
        self.cost["block_forwards"] += self._forwards.block_forwards(block, batches)
        self.cost["images"] += len(batches) * self._replay.batch_size * world().size

    def _entropy(self, feature_BD: Tensor) -> Tensor:
        return information_entropy(world().gather(feature_BD), self._inverse_temperature).double()


def _unit(feature_BD: Tensor) -> Tensor:
    return F.normalize(feature_BD.float(), dim=-1).cpu()


class ForwardCounter:
    """Block forwards of a search's measurements, as one that is never interrupted pays them.

    A batch's first run passes every block; later ones pass the blocks from the searched one on, after those between it
    and the kept inputs before it, once for each batch that the block needs.
    """

    def __init__(self, num_blocks: int, every: int | None) -> None:
        self._num_blocks, self._every = num_blocks, every
        self._block = 0
        self._ready: set[int] = set()
        self._reached: set[int] = set()

    def block_forwards(self, block: int, batches: range) -> int:
        """Of one measurement, by the blocks from `block` on."""
        if block != self._block:
            # A search that starts again at the last block finds the inputs before it forgotten.
            self._reached = self._reached if block < self._block else set()
            self._block, self._ready = block, set()
        if block == 0 or not self._every:
            return self._num_blocks * len(batches)
        wanted = set(batches)
        first, recomputed = wanted - self._reached, (wanted & self._reached) - self._ready
        self._ready |= wanted
        self._reached |= wanted
        return len(first) * block + len(recomputed) * (block % self._every) + len(wanted) * (self._num_blocks - block)
