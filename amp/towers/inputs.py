"""What a block is handed."""

from torch import Tensor

from amp.prune.measure.replay import _first
from amp.towers import Tower


def input_bytes(tower: Tower) -> int:
    """What one image is to a block, as the block before hands it on; also on the meta device."""
    caught: list[Tensor] = []
    last = list(tower.blocks.values())[-1]
    handle = last.register_forward_pre_hook(
        lambda module, inputs, named: caught.append(_first(inputs, named)), with_kwargs=True
    )
    try:
        tower.feature(next(tower.visual.parameters()).new_empty(1, 3, tower.image_size, tower.image_size))
    finally:
        handle.remove()
    return caught[0].nbytes
