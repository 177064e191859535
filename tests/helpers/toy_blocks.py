"""A toy network of MLP blocks in any order of running, for the tests of the scores.

B images, T tokens, D width.
"""

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from amp.towers.mlps.find_slots import find_slots
from amp.towers.mlps.slots import MlpSlot

D = 8


class Toy(nn.Module):
    """Blocks of MLPs; `order` is the order in which they run."""

    def __init__(self, *order: int, num_blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(Mlp(D, 16)) for _ in range(num_blocks))
        self.order = order
        generator = torch.Generator().manual_seed(0)
        for parameter in self.requires_grad_(False).parameters():
            parameter.normal_(std=0.3, generator=generator)

    @property
    def slots(self) -> tuple[MlpSlot, ...]:
        return find_slots({f"blocks.{index}": block for index, block in enumerate(self.blocks)})

    def forward(self, x_BTD: Tensor) -> Tensor:
        for index in self.order:
            x_BTD = x_BTD + self.blocks[index](x_BTD)
        return x_BTD


def toy_input() -> Tensor:
    return torch.randn(4, 3, D, generator=torch.Generator().manual_seed(0))
