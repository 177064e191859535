"""What every library's vision tower gives to the method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amp.mlp import MlpSlot


@dataclass(frozen=True, eq=False)
class Tower:
    """A vision tower inside its whole model, frozen and in eval mode.

    B images, C channels, S side in pixels, D width.

    Attributes:
        base: what rebuilds the dense model: `{frame, name, kwargs, precision, ...}`, JSON-able.
        model: the whole model, text tower included; what is saved.
        visual: the vision tower, a submodule of `model` (or `model` itself).
        blocks: transformer blocks by path in `visual`, first to last.
        slots: the prunable MLP of each block, in the same order.
        feature: images (B, C, S, S) -> the criterion's feature (B, D).
        num_prefix_tokens: tokens before the patch tokens (CLS, registers).
        preprocess: `{size, mean, std, interpolation, ...}` of the evaluation transform.
        dtype: images are cast to it.
        transform: evaluation transform, PIL image -> (C, S, S) fp32.
        make_tokenizer: builds the text tokenizer; raises where the model has none.
        shared: modules and parameters after the last block (final norm, projection or head), paths in `visual`.
    """

    base: Mapping[str, Any]
    model: nn.Module
    visual: nn.Module
    blocks: Mapping[str, nn.Module]
    slots: tuple[MlpSlot, ...]
    feature: Callable[[Tensor], Tensor]
    num_prefix_tokens: int
    preprocess: Mapping[str, Any]
    dtype: torch.dtype
    transform: Callable[[Any], Tensor]
    make_tokenizer: Callable[[], Any]
    shared: tuple[str, ...]

    @property
    def image_size(self) -> int:
        """S, the side of the square input in pixels."""
        size = self.preprocess["size"]
        return int(size if isinstance(size, int) else size[0])

    def same_architecture(self, other: "Tower") -> bool:
        """Whether both are of one dense model, whatever their widths and weights."""
        return all(self.base.get(key) == other.base.get(key) for key in ("frame", "model_config", "kwargs"))

    @property
    def widths(self) -> list[int]:
        """Hidden width of every block, first to last."""
        return [slot.hidden_width for slot in self.slots]


class TokenReadout(nn.Module):
    """images (B, C, S, S) -> the last block's output (B, T, D), before the final norm and the head."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.visual = tower.visual
        self._tokens: list[Tensor] = []
        last = list(tower.blocks.values())[-1]
        last.register_forward_hook(lambda module, inputs, output: self._tokens.append(output))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self._tokens.clear()
        self.visual(images_BCHW)
        (tokens_BTD,) = self._tokens
        self._tokens.clear()
        return tokens_BTD
