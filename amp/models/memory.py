"""What a tower takes in memory, counted on meta tensors before anything is loaded, and how a plan of it reads."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amp.run.world import gpu_gigabytes
from amp.towers import Tower

GB = 1e9
ASSUMED_GB = 80.0  # of the GPU that is planned for where there is none

Bytes = TypeVar("Bytes", int, float)


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that live at once while operations run inside `with`; those made before do not count.

    Attributes:
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in before and id(storage) not in self._alive:
                    self._alive[id(storage)] = storage
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return output

    def _freed(self, size: int) -> None:
        self._now -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within it torch's attention on meta tensors leaves what a GPU's kernel does: its output and a number a row.

    By itself it is the written-out one there, with (T, T) matrices and copies in fp32.
    """
    written_out = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not query.is_meta or query.ndim != 4 or query.shape[:2] != key.shape[:2]:
            return written_out(query, key, value, *args, **kwargs)
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    with patch.object(F, "scaled_dot_product_attention", attend):
        yield


def with_total(**parts: Bytes) -> dict[str, Bytes]:
    """The parts of a plan in bytes, and their sum as `total`."""
    return {**parts, "total": sum(parts.values())}


def weight_bytes(tower: Tower) -> int:
    """Bytes of the whole model's parameters and buffers, text tower included."""
    return tensor_bytes([*tower.model.parameters(), *tower.model.buffers()])


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.nbytes for tensor in tensors)


def peak_bytes(tower: Tower, batch_size: int, run: Callable[[Tensor], object]) -> int:
    """The most bytes that live at once while `run` is given images (batch_size, C, S, S); these count too.

    Args:
        tower: on the meta device, in the dtype that it will have.
    """
    images_BCSS = tower.blank(batch_size)
    with fused_attention(), PeakMemory() as memory:
        run(images_BCSS)
    return memory.peak + images_BCSS.nbytes


def planned_gigabytes(asked: float | None) -> float:
    """Memory of the GPU that is planned for: as asked, else of the one at hand."""
    return asked or gpu_gigabytes() or ASSUMED_GB


def describe_memory(
    title: Sequence[str],
    plan: Mapping[str, float],
    gpu_gb: float | None = None,
    advice: str = "",
    notes: Mapping[str, str] | None = None,
) -> str:
    """A plan as lines, and whether its total fits a GPU, where one is given.

    Args:
        title: lines above the table.
        plan: bytes by name, `total` among them.
        advice: the settings that would make it fit, said where it does not.
        notes: of some of the names, in brackets behind the size.
    """
    lines = [*title]
    for name, size in plan.items():
        note = f" ({notes[name]})" if notes and name in notes else ""
        lines.append(f"  {name.replace('_', ' '):<17}{size / GB:9.2f} GB{note}")
    if gpu_gb is None:
        return "\n".join(lines)
    verdict = "fits" if plan["total"] <= gpu_gb * GB else "does not fit"
    lines.append(f"{verdict} a GPU of {gpu_gb:.4g} GB{'' if verdict == 'fits' else f'; {advice}'}")
    return "\n".join(lines)
