"""What a block is handed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amp.towers.base import Tower


def first_input(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The hidden states among a block's arguments: the first one, by position or, where there is none, by name."""
    return inputs[0] if inputs else next(iter(named.values()))


Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def inputs_of(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, Inputs]:
    """What each module is called with, once, while `run` runs; in the order of their calls."""
    seen: list[Inputs] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
        for module in modules.values()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return dict(zip(modules, seen, strict=True))


def random_like(value: Any, generator: torch.Generator, dtype: torch.dtype = torch.float32, tokens: int = 1) -> Any:
    """`value` with random numbers in its tensors, on the CPU, wherever they stand in tuples and dictionaries.

    Args:
        tokens: that a tensor (B, T, D) has at least; it is of more images then.
    """
    if isinstance(value, tuple):
        return tuple(random_like(item, generator, dtype, tokens) for item in value)
    if isinstance(value, dict):
        return {key: random_like(item, generator, dtype, tokens) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    shape = [max(len(value), tokens // value.shape[1]), *value.shape[1:]] if value.ndim == 3 else value.shape
    return torch.randn(shape, generator=generator, dtype=dtype)


def input_bytes(tower: Tower) -> int:
    """What one image is to a block, in bytes, as the block before hands it on; also on the meta device."""
    caught: list[Tensor] = []
    last = list(tower.blocks.values())[-1]
    handle = last.register_forward_pre_hook(
        lambda module, inputs, named: caught.append(first_input(inputs, named)), with_kwargs=True
    )
    try:
        tower.feature(tower.blank())
    finally:
        handle.remove()
    return caught[0].nbytes
