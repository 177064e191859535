"""Hooks on what enters an out-projection."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from amp.towers.mlps.slots import Slot


class MlpHooks:
    """Hooks on what enters the out-projection, or another Linear, of some slots; they live inside a `with`.

    A subclass says in `_hook` what is done with it, and in `_module` which Linear it enters.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for index in range(len(self._slots)):
            self._handles.append(self._module(index).register_forward_pre_hook(self._hook(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _module(self, index: int) -> nn.Linear:
        return self._slots[index].out_projection

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        raise NotImplementedError
