"""What stands between a tower's last block and its feature: the tokens there, and which of them the feature reads.

B images, C channels, S side in pixels, T tokens, D width.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.towers.base import Tower, first_line
from amp.towers.copies import on_meta


class TokenReadout(nn.Module):
    """images (B, C, S, S) -> the last block's output (B, T, D), before the final norm and the head.

    Called with another readout of its tower too, it gives that one's output: what is wrapped around this module then
    works for both.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.visual = tower.visual
        self._tokens: list[Tensor] = []
        last = list(tower.blocks.values())[-1]
        self._hook = last.register_forward_hook(lambda module, inputs, output: self._tokens.append(_first(output)))

    def close(self) -> None:
        """Leaves the tower as it was."""
        self._hook.remove()

    def forward(self, images_BCHW: Tensor, read: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        self._tokens.clear()
        output = (read or self.visual)(images_BCHW)
        (tokens_BTD,) = self._tokens
        self._tokens.clear()
        return output if read else tokens_BTD


def _first(output: Any) -> Tensor:
    """The tokens, where a block gives its attention's weights too."""
    tokens_BTD: Tensor = output[0] if isinstance(output, tuple) else output
    return tokens_BTD


def after_last_block(tower: Tower) -> frozenset[str]:
    """Paths in `visual` of the parameters that the last block's output does not depend on: final norm, pool, head.

    Args:
        tower: on the meta device; its parameters are left requiring gradients.
    """
    parameters = dict(tower.visual.requires_grad_(True).named_parameters())
    with torch.enable_grad():
        tokens_1TD = TokenReadout(tower)(tower.blank())
    gradients = torch.autograd.grad(tokens_1TD.sum(), list(parameters.values()), allow_unused=True)
    return frozenset(name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None)


@torch.inference_mode(False)
@torch.enable_grad()
def check_readout(tower: Tower) -> Tower:
    """The tower with its `read_tokens`, after one image of the right size was turned into a feature.

    Nothing of the tower is computed: a copy without weights runs on the meta device, and only what stands behind the
    last block is given random weights and random tokens. Of the blocks the first one runs, and its output stands for
    that of all others, which is of the same shape.

    Raises:
        UserError: it does not turn square RGB images into one vector each.
    """
    side = tower.image_size
    key = "model.kwargs" if tower.base["kwargs"] else "model.name"
    name = tower.base["name"]
    twin = on_meta(tower)
    images_1CSS = torch.empty(1, 3, side, side, dtype=tower.dtype, device="meta")
    try:
        _skip_blocks(twin)
        within = tuple(f"{path}." for path in twin.blocks)
        _fill(twin.visual, frozenset(name for name in after_last_block(twin) if not name.startswith(within)))
        with torch.enable_grad():
            tokens_1TD, feature_1D = _from_random_tokens(twin, images_1CSS)
    except Exception as error:  # Whatever the library says of images that are not its own.
        reason = first_line(error) or type(error).__name__
        raise UserError(key, f"{name}: does not take square RGB images of {side} px ({reason})") from None
    if feature_1D.ndim != 2:
        shape = ", ".join(map(str, feature_1D.shape[1:]))
        raise UserError(key, f"{name}: returns the shape ({shape}) per image; its tokens must be pooled to one vector")
    weights_1D = torch.linspace(1, 2, feature_1D.shape[1], dtype=feature_1D.dtype)
    (gradient_1TD,) = torch.autograd.grad((feature_1D * weights_1D).sum(), tokens_1TD)
    read = (gradient_1TD[0, : tower.num_prefix_tokens] != 0).any(1)
    return replace(tower, read_tokens=tuple(read.nonzero().flatten().tolist()))


def _skip_blocks(twin: Tower) -> None:
    """All blocks but the first give its output again: on meta tensors nothing but shapes and the graph differ."""
    first, *others = twin.blocks.values()
    outputs: list[Any] = []

    def remember(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[:] = [output]

    first.register_forward_hook(remember)
    for block in others:
        block.forward = lambda *inputs, **named: outputs[0]


@torch.no_grad()
def _fill(visual: nn.Module, names: frozenset[str]) -> None:
    """Random weights for parameters on the meta device."""
    generator = torch.Generator().manual_seed(0)
    for name in names:
        path, _, attribute = name.rpartition(".")
        old = visual.get_parameter(name)
        value = torch.randn(old.shape, generator=generator).to(old.dtype) * 0.1
        setattr(visual.get_submodule(path), attribute, nn.Parameter(value, requires_grad=False))


def _from_random_tokens(twin: Tower, images_1CSS: Tensor) -> tuple[Tensor, Tensor]:
    """Random tokens (1, T, D) in the place of the last block's output, and the feature (1, D) of them."""
    made: list[Tensor] = []

    def exchange(module: nn.Module, inputs: Any, output: Any) -> Any:
        like = _first(output)
        generator = torch.Generator().manual_seed(0)
        made.append(torch.randn(like.shape, generator=generator).to(like.dtype).requires_grad_())
        return (made[0], *output[1:]) if isinstance(output, tuple) else made[0]

    list(twin.blocks.values())[-1].register_forward_hook(exchange)
    feature_1D = twin.feature(images_1CSS)
    return made[0], feature_1D
