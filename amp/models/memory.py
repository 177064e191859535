"""What a tower takes in memory, counted on meta tensors."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amp.towers import Tower
from amp.towers.inputs import input_bytes

GB = 1e9


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that live at once while operations run inside `with`; those made before do not count.

    Attributes:
        peak: the most so far.
        num_tokens: T; (T, T) matrices do not count, since attention on a GPU keeps none.
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.peak = self._now = 0
        self._alive: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.shape[-2:] != (self.num_tokens, self.num_tokens):
                storage = leaf.untyped_storage()
                if id(storage) not in before and id(storage) not in self._alive:
                    self._alive[id(storage)] = storage
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return output

    def _freed(self, size: int) -> None:
        self._now -= size


def with_total(**parts: int) -> dict[str, int]:
    return {**parts, "total": sum(parts.values())}


def weight_bytes(tower: Tower) -> int:
    return sum(p.numel() * p.element_size() for p in [*tower.model.parameters(), *tower.model.buffers()])


def peak_bytes(tower: Tower, batch_size: int, run: Callable[[Tensor], object]) -> int:
    images_BCSS = torch.empty(batch_size, 3, tower.image_size, tower.image_size, dtype=tower.dtype, device="meta")
    num_tokens = input_bytes(tower) // max(1, tower.slots[0].out_projection.out_features) // images_BCSS.element_size()
    with PeakMemory(num_tokens) as memory:
        run(images_BCSS)
    return memory.peak + images_BCSS.nbytes
