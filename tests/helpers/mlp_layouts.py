"""MLPs of every layout and a block around them, for the tests of amp.mlp.

D embedding width, H hidden width, T tokens.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from timm.layers import Attention, GluMlp, Mlp, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.vitamin import GeGluMlp
from torch import Tensor, nn

from amp.towers.mlps.find_slots import find_slots
from amp.towers.mlps.slots import MlpSlot

D, H = 12, 20


def sequential(norm: nn.Module | None = None) -> nn.Sequential:
    """open_clip's MLP: plain, or with `scale_fc` a norm between in-projection and activation."""
    children: list[tuple[str, nn.Module]] = [("c_fc", nn.Linear(D, H))]
    children += [("ln", norm)] if norm is not None else []
    return nn.Sequential(OrderedDict([*children, ("gelu", nn.GELU()), ("c_proj", nn.Linear(H, D))]))


def siblings() -> nn.Sequential:
    """An MLP split over two modules, as Data2Vec has it."""
    parts = {
        "intermediate": nn.Sequential(nn.Linear(D, H), nn.GELU()),
        "output": nn.Sequential(nn.Linear(H, D), nn.Dropout()),
    }
    return nn.Sequential(OrderedDict(parts))


# Two norms of one formula each, so that a reference can be written out.
LN = nn.LayerNorm
PLAIN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm-mlp": (lambda: Mlp(D, H), "plain"),
    "timm-mlp-no-bias": (lambda: Mlp(D, H, bias=False), "plain"),
    "timm-mlp-relu": (lambda: Mlp(D, H, act_layer=nn.ReLU), "plain"),
    "open-clip": (sequential, "plain"),
    "siblings": (siblings, "plain"),
    "packed-swiglu": (lambda: SwiGLUPacked(D, 2 * H), "packed gate"),
    "packed-glu": (lambda: GluMlp(D, 2 * H, bias=False), "packed gate"),
    "split-swiglu": (lambda: SwiGLU(D, H), "split gate"),
    "split-swiglu-no-bias": (lambda: SwiGLU(D, H, bias=False), "split gate"),
    "vitamin-geglu": (lambda: GeGluMlp(D, H), "split gate"),
}
NORMED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm-mlp-layernorm": (lambda: Mlp(D, H, norm_layer=LN), "plain + norm"),
    "timm-mlp-rmsnorm": (lambda: Mlp(D, H, norm_layer=partial(RmsNorm, eps=1e-5)), "plain + norm"),
    "open-clip-scale-fc": (lambda: sequential(LN(H)), "plain + norm"),
    "packed-layernorm": (lambda: SwiGLUPacked(D, 2 * H, norm_layer=LN), "packed gate + norm"),
    "split-layernorm": (lambda: SwiGLU(D, H, norm_layer=LN), "split gate + norm"),
    "split-rmsnorm": (lambda: SwiGLU(D, H, norm_layer=partial(nn.RMSNorm, eps=1e-5)), "split gate + norm"),
}
ALL = PLAIN | NORMED


class Block(nn.Module):
    """A transformer block with timm's attention."""

    def __init__(self, mlp: nn.Module | None, *more: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = LN(D), Attention(D, num_heads=2), LN(D)
        self.mlp = mlp or nn.Identity()
        self.more = nn.ModuleList(more)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


def make_block(name: str) -> tuple[Block, MlpSlot]:
    """A block in which every parameter matters."""
    block = Block(ALL[name][0]()).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    (slot,) = find_slots({"blocks.0": block})
    return block, slot


def some_neurons(count: int = 8, seed: int = 0) -> Tensor:
    return torch.randperm(H, generator=torch.Generator().manual_seed(seed))[:count]
