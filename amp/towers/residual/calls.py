"""How a tower's blocks are called, so that each can be run by itself.

B images, T tokens, D width of the tower.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.towers.base import Tower
from amp.towers.mlps.inputs import first_input


class SeenError(Exception):
    """What was wanted of a run is there."""


@dataclass(frozen=True, eq=False)
class BlockCall:
    """A block, and what it is handed beside its hidden states, which is the same for all images of a tower.

    Args:
        rest, named: all others of the call's arguments.
        name: by which the hidden states go; None: they come first.
    """

    block: nn.Module
    rest: tuple[Any, ...]
    named: Mapping[str, Any]
    name: str | None = None

    @classmethod
    def of(cls, block: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Self:
        """As a hook sees it; the hidden states are not kept."""
        if inputs:
            return cls(block, inputs[1:], named)
        first, *others = named
        return cls(block, (), {key: named[key] for key in others}, first)

    def __call__(self, x_BTD: Tensor) -> Tensor:
        """Hidden states (B, T, D) -> those that the block hands on."""
        if self.name is None:
            output = self.block(x_BTD, *self.rest, **self.named)
        else:
            output = self.block(**{self.name: x_BTD}, **self.named)
        return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def block_calls(
    tower: Tower, images_BCSS: Tensor, entering: Callable[[Tensor], object] = lambda x_BTD: None
) -> list[BlockCall]:
    """The tower's blocks as they are called for these images.

    Args:
        entering: is told the hidden states (B, T, D) that enter each.

    Raises:
        UserError: a block is not handed what the one before it hands on.
    """
    calls: list[BlockCall] = []
    handed: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        first_BTD = first_input(inputs, named)
        if handed and not torch.equal(handed[-1], first_BTD):
            name = type(tower.visual).__name__
            text = f"the blocks of a {name} do not form a chain, which a refit of the whole needs; use ridge"
            raise UserError("prune.compensation", text)
        calls.append(BlockCall.of(module, inputs, named))
        entering(first_BTD)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        handed[:] = [output[0] if isinstance(output, tuple) else output]

    with ExitStack() as hooks:
        for block in tower.blocks.values():
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(after).remove)
        tower.feature(images_BCSS)
    return calls


@torch.no_grad()
def entering_blocks(tower: Tower, images_BCSS: Tensor) -> Tensor:
    """(B, T, D) the hidden states of these images that enter the first block; no block is run."""
    seen: list[Tensor] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(first_input(inputs, named))
        raise SeenError

    handle = next(iter(tower.blocks.values())).register_forward_pre_hook(see, with_kwargs=True)
    try:
        tower.feature(images_BCSS)
    except SeenError:
        pass
    finally:
        handle.remove()
    (x_BTD,) = seen
    return x_BTD
