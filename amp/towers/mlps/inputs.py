"""What a block is handed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from amp.towers.base import Tower


def first_input(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The hidden states among a block's arguments: the first one, by position or, where there is none, by name."""
    return inputs[0] if inputs else next(iter(named.values()))


def input_bytes(tower: Tower) -> int:
    """What one image is to a block, in bytes, as the block before hands it on; also on the meta device."""
    caught: list[Tensor] = []
    last = list(tower.blocks.values())[-1]
    handle = last.register_forward_pre_hook(
        lambda module, inputs, named: caught.append(first_input(inputs, named)), with_kwargs=True
    )
    try:
        tower.feature(next(tower.visual.parameters()).new_empty(1, 3, tower.image_size, tower.image_size))
    finally:
        handle.remove()
    return caught[0].nbytes
