"""DINOv2 and DINOv3 as timm builds them, with the weight files that Meta released or timm's weights.

Feature of the criterion: (B, D), the CLS token after the final norm, unless `model.kwargs` says `global_pool`.
"""

import math
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from amp.errors import UserError, joined, nearest
from amp.settings.model import ModelSettings
from amp.towers.base import Tower
from amp.towers.frames import timm as timm_frame
from amp.towers.library import Library
from amp.towers.native.timm import NATIVE
from amp.towers.weights import EMA_FIRST, State

OFFSET = 0.1  # patches


def build(settings: ModelSettings, device: str, saved: dict[str, Any] | None) -> Tower:
    """A tower of DINOv2 or DINOv3; see `amp.towers.build_tower`."""
    _check_name(settings.name)
    return timm_frame.build(settings, device, saved, from_meta)


def check(settings: ModelSettings) -> None:
    """As of `Library`."""
    _check_name(settings.name)
    timm_frame.check(settings)


def _check_name(name: str) -> None:
    if timm.is_model(name) and not knows(name):
        told = f"{name!r} is not a DINOv2 or DINOv3 of timm{nearest(name, timm.list_models('*dinov*'))}"
        raise UserError("model.name", joined(told, "for other models use the frame timm"))


def from_meta(settings: ModelSettings, state: State) -> State:
    """A file of Meta's with its position embedding at the size of `settings`; timm reads the rest as it is."""
    if "pos_embed" not in state or "reg_token" in state:
        return state
    with torch.device("meta"):
        twin: Any = timm.create_model(settings.name, **settings.kwargs)
    return {**state, "pos_embed": resample_positions(state["pos_embed"], twin.patch_embed.grid_size)}


def resample_positions(position_1TD: Tensor, grid: tuple[int, int]) -> Tensor:
    """DINOv2's position embedding at another size, as Meta's code interpolates it.

    Bicubic without antialiasing, by scale factors with an offset of 0.1; timm's own way differs by 0.6 % of the
    feature at 224 px.

    Args:
        position_1TD: (1, 1 + N, D), the CLS token's first, N a square.
        grid: patches along height and width.
    Returns:
        (1, 1 + grid[0] * grid[1], D).
    """
    side = math.isqrt(position_1TD.shape[1] - 1)
    if (side, side) == tuple(grid):
        return position_1TD
    patches_1DHW = position_1TD[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = tuple(float(patches + OFFSET) / side for patches in grid)
    resampled_1DHW = F.interpolate(patches_1DHW, mode="bicubic", antialias=False, scale_factor=scale)
    assert tuple(resampled_1DHW.shape[-2:]) == tuple(grid)
    flat_1ND = resampled_1DHW.permute(0, 2, 3, 1).flatten(1, 2).to(position_1TD.dtype)
    return torch.cat([position_1TD[:, :1], flat_1ND], dim=1)


def knows(name: str) -> bool:
    """Whether it is a DINOv2 or DINOv3 of timm."""
    return timm.is_model(name) and "dinov" in name


LIBRARY = Library(
    known_as="dinov2 (Meta's files)",
    knows=knows,
    build=build,
    check=check,
    tags=timm_frame.LIBRARY.tags,
    families=[
        ("DINOv2 small to large, with registers or without", "plain", "vit_large_patch14_dinov2"),
        ("DINOv2 giant", "packed gate", "vit_giant_patch14_dinov2"),
        ("DINOv3 small to large; H+ and 7B", "plain; split gate", "vit_large_patch16_dinov3"),
    ],
    native=NATIVE,
    names=lambda: timm.list_models("*dinov[23]*"),
    checkpoint_keys=EMA_FIRST,
)
