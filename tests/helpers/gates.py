"""Scores by another way, for the tests of the scores: each neuron's gate, a factor of one that its activation passes.

B images, H hidden width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from amp.towers import Tower
from amp.towers.mlps.slots import MlpSlot


def random_batches(num_batches: int = 2, batch_size: int = 6) -> list[Tensor]:
    """(B, 3, 32, 32) each, of a standard normal; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(num_batches, batch_size, 3, 32, 32, generator=generator))


@contextmanager
def masks(slots: tuple[MlpSlot, ...], batch_size: int) -> Iterator[list[Tensor]]:
    """Multiplies every out-projection's input by ones (B, 1, H), one factor an image and neuron."""
    ones = [torch.ones(batch_size, 1, slot.hidden_width, requires_grad=True) for slot in slots]
    handles = [
        slot.out_projection.register_forward_pre_hook(lambda _, inputs, one=one: (inputs[0] * one,))
        for slot, one in zip(slots, ones, strict=True)
    ]
    yield ones
    for handle in handles:
        handle.remove()


def by_masks(tower: Tower, images_BCHW: Tensor, loss: Callable[[], Tensor]) -> list[Tensor]:
    """(B, H) a block: the loss's derivative by each image's and neuron's gate, at 1."""
    with masks(tower.slots, len(images_BCHW)) as ones:
        loss().backward()
    return [one_B1H.grad.squeeze(1) for one_B1H in ones]
