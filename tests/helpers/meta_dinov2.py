"""DINOv2 as Meta's code computes it, for the tests of the towers that read Meta's files."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class MetaDinov2:
    """Meta's DINOv2 with SwiGLU, from its description: pre-norm blocks, layer scale, CLS first."""

    def __init__(self, width: int = 64, hidden: int = 176, depth: int = 3, side: int = 4, patch: int = 8) -> None:
        generator = torch.Generator().manual_seed(1)

        def random(*shape: int, scale: float = 0.1) -> Tensor:
            return scale * torch.randn(shape, generator=generator)

        self.width, self.heads, self.depth, self.side, self.patch = width, 4, depth, side, patch
        self.state = {
            "cls_token": random(1, 1, width),
            "mask_token": random(1, width),
            "pos_embed": random(1, 1 + side**2, width, scale=1.0),
            "patch_embed.proj.weight": random(width, 3, patch, patch),
            "patch_embed.proj.bias": random(width),
            "norm.weight": 1 + random(width),
            "norm.bias": random(width),
        }
        for i in range(depth):
            shapes = {
                **{f"norm{n}.{key}": (width,) for n in (1, 2) for key in ("weight", "bias")},
                **{"attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,)},
                **{"attn.proj.weight": (width, width), "attn.proj.bias": (width,)},
                **{"ls1.gamma": (width,), "ls2.gamma": (width,)},
                **{"mlp.w12.weight": (2 * hidden, width), "mlp.w12.bias": (2 * hidden,)},
                **{"mlp.w3.weight": (width, hidden), "mlp.w3.bias": (width,)},
            }
            self.state |= {f"blocks.{i}.{key}": random(*shape, scale=0.2) for key, shape in shapes.items()}

    def positions(self, side: int) -> Tensor:
        position = self.state["pos_embed"]
        if side == self.side:
            return position
        grid = position[:, 1:].reshape(1, self.side, self.side, self.width).permute(0, 3, 1, 2)
        scale = (side + 0.1) / math.sqrt(self.side**2)
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
        return torch.cat([position[:, :1], grid.permute(0, 2, 3, 1).reshape(1, side**2, self.width)], dim=1)

    def __call__(self, images: Tensor) -> Tensor:
        s = self.state
        x = F.conv2d(images, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=self.patch)
        side = x.shape[-1]
        x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + self.positions(side)
        for i in range(self.depth):
            b = {k.removeprefix(f"blocks.{i}."): v for k, v in s.items() if k.startswith(f"blocks.{i}.")}
            x = x + b["ls1.gamma"] * self._attention(b, self._norm(x, b["norm1.weight"], b["norm1.bias"]))
            gate, value = F.linear(
                self._norm(x, b["norm2.weight"], b["norm2.bias"]), b["mlp.w12.weight"], b["mlp.w12.bias"]
            ).chunk(2, dim=-1)
            x = x + b["ls2.gamma"] * F.linear(F.silu(gate) * value, b["mlp.w3.weight"], b["mlp.w3.bias"])
        return self._norm(x, s["norm.weight"], s["norm.bias"])[:, 0]

    def _norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), weight, bias, eps=1e-6)

    def _attention(self, b: dict[str, Tensor], x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = F.linear(x, b["attn.qkv.weight"], b["attn.qkv.bias"])
        q, k, v = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(dim=-1)
        return F.linear((weights @ v).transpose(1, 2).reshape(x.shape), b["attn.proj.weight"], b["attn.proj.bias"])
