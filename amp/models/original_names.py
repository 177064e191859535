"""The names that a tower's tensors have in the model's original code, and so in published checkpoints.

| model | names |
|---|---|
| OpenCLIP | `transformer.resblocks.N.mlp.c_fc.weight`, `c_proj` |
| EVA-CLIP | `blocks.N.mlp.fc1.weight`, `fc2`: without open_clip's `trunk.` |
| DINOv2 | `blocks.N.mlp.w12.weight`, `w3` (gated), `register_tokens`; plain MLPs `fc1`, `fc2` |
| others | as their library has them |

A prefix `model.`, `visual.` or `module.` may stand before all of them. Widths are those of the tensors.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from amp.errors import UserError
from amp.towers.base import Tower
from amp.towers.frames.dinov2 import resample_positions

State = dict[str, Tensor]
PREFIXES = ("module.", "_orig_mod.", "model.", "visual.")
# Of the original code, what the towers here compute or do without in evaluation.
LEFT_OUT = re.compile(r"mask_token$|(.*\.)?rope\.|.*\.relative_position_index$")


def original_names(tower: Tower) -> dict[str, str]:
    """Path in the tower's state dict -> name in the model's original code."""
    rules = [(r"^trunk\.", ""), (r"^head\.proj\.", "head.")] if hasattr(tower.visual, "trunk") else []
    if _is_dinov2(tower):
        rules = [(r"^reg_token$", "register_tokens")]
        if tower.slots[0].packed:
            rules += [(r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3.")]
    names = {}
    for path in tower.visual.state_dict():
        name = path
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        names[path] = name
    return names


def to_original(tower: Tower) -> State:
    """The tower's state dict in the names of the model's original code.

    DINOv2's `mask_token`, which only its own training reads and timm does not hold, is written as zeros. The position
    of the CLS token is part of timm's `cls_token` where there are registers, and is written as zeros too.
    """
    names = original_names(tower)
    state = {names[path]: tensor for path, tensor in tower.visual.state_dict().items()}
    if _is_dinov2(tower):
        cls_11D = state["cls_token"]
        state["mask_token"] = torch.zeros_like(cls_11D[0])
        if "register_tokens" in state:
            state["pos_embed"] = torch.cat([torch.zeros_like(cls_11D), state["pos_embed"]], dim=1)
    return state


def rename(state: Mapping[str, Tensor], tower: Tower) -> State:
    """A published state dict with the paths of `tower` for names; those that the tower lacks stay as they are."""
    paths = {name: path for path, name in original_names(tower).items()}
    own = strip_prefixes(state)
    return {paths.get(name, name): tensor for name, tensor in own.items() if not LEFT_OUT.match(name)}


def from_original(state: Mapping[str, Tensor], tower: Tower) -> State:
    """A published state dict as one that `tower` loads, once it has its widths.

    Args:
        tower: of the same model, of any widths.
    """
    own = rename(state, tower)
    if _is_dinov2(tower) and "pos_embed" in own and _has_class_token(own["pos_embed"]):
        visual: Any = tower.visual
        position_1TD = resample_positions(own["pos_embed"], visual.patch_embed.grid_size)
        if "reg_token" in own:
            # timm adds the class token's position to the token itself.
            own["cls_token"] = own["cls_token"] + position_1TD[:, :1]
            position_1TD = position_1TD[:, 1:]
        own["pos_embed"] = position_1TD
    return own


def _has_class_token(position_1TD: Tensor) -> bool:
    """Whether one token stands before a square of patches."""
    patches = position_1TD.shape[1] - 1
    return math.isqrt(patches) ** 2 == patches


def strip_prefixes(state: Mapping[str, Tensor]) -> State:
    """Without the prefixes that all names share."""
    own = dict(state)
    while prefix := next((p for p in PREFIXES if own and all(name.startswith(p) for name in own)), None):
        own = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    return own


def read_widths(own: Mapping[str, Tensor], dense: Tower) -> list[int]:
    """Hidden width of every block, from the shapes of a state dict in the paths of `dense`.

    Raises:
        UserError: a block is missing, wider than in the dense model, or its tensors are of different widths.
    """
    paths = {module: path for path, module in dense.visual.named_modules()}
    widths = []
    for slot in dense.slots:
        out = f"{paths[slot.out_projection]}.weight"
        if out not in own or own[out].ndim != 2:
            raise UserError(f"block {slot.name}", f"missing (no tensor {out}); the model has {len(dense.slots)} blocks")
        width = own[out].shape[1]
        if width == 0:
            raise UserError(f"block {slot.name}", "has no neurons; a pruned block has 1 or more")
        if width > slot.hidden_width:
            raise UserError(
                f"block {slot.name}", f"has {width} neurons, more than the {slot.hidden_width} of the dense model"
            )
        for linear in slot.in_projections:
            rows = own.get(f"{paths[linear]}.weight")
            if rows is None or len(rows) != width * (1 + slot.packed):
                found = "is missing" if rows is None else f"has {len(rows)} rows"
                raise UserError(
                    f"block {slot.name}",
                    f"its tensors do not fit together: {paths[linear]}.weight {found}, but {out} takes {width} neurons",
                )
        widths.append(width)
    return widths


def _is_dinov2(tower: Tower) -> bool:
    return tower.base["frame"] in ("dinov2", "timm") and "dinov2" in tower.base["name"]
