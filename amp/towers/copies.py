"""Copies of a tower: of its shapes alone, or of all that it is."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from amp.towers.base import Tower


def on_meta(tower: Tower) -> Tower:
    """A copy of the vision tower whose parameters and buffers are on the meta device: its shapes."""
    memo: dict[int, Any] = {}
    for parameter in tower.model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in tower.model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    twin = _copied(tower, memo)
    for module in twin.visual.modules():  # Whoever hooked the tower waits for its values.
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    return twin


def duplicate(tower: Tower) -> Tower:
    """A copy of the vision tower with weights of its own."""
    return _copied(tower, {})


def _copied(tower: Tower, memo: dict[int, Any]) -> Tower:
    parts = (tower.visual, dict(tower.blocks), tower.slots, tower.heads, tower.feature)
    visual, blocks, slots, heads, feature = copy.deepcopy(parts, memo)
    return replace(tower, model=visual, visual=visual, blocks=blocks, slots=slots, heads=heads, feature=feature)
