"""Towers of timm: any plain vision transformer by name, and DINOv2 and DINOv3 with Meta's files (frame `dinov2`).

Feature of the criterion: (B, D), after the final norm and the pooling, before the classifier: what
`forward_head(forward_features(images), pre_logits=True)` returns. For DINOv2 and DINOv3 the normalised CLS token.
"""

import math
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor

from amp.errors import UserError, nearest
from amp.settings.model import ModelSettings
from amp.towers.base import Tower, building, check_weights, refuse_loading
from amp.towers.find_slots import find_blocks, find_slots
from amp.towers.weights import without_weights

# What makes the factory read files of its own choice: never from settings, nor from a folder.
LOADING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable", "no_jit"}
)
META_OFFSET = 0.1


def build(settings: ModelSettings, device: str, saved: dict[str, Any] | None) -> Tower:
    """A tower of timm; see `amp.towers.build_tower`."""
    name = _check_name(settings)
    refuse_loading(settings.kwargs, LOADING)
    weights = None if saved or device == "meta" else settings.pretrained
    if weights:
        check_weights(settings, _tags(name))
    empty = device != "meta" and bool(saved or weights)
    with building(settings, weights, "timm"), without_weights(weights) if empty else torch.device(device):
        model: Any = timm.create_model(name, **settings.kwargs) if weights is None else _load(settings, name, weights)
    for method in ("forward_features", "forward_head", "num_prefix_tokens"):
        if not hasattr(model, method):
            raise UserError(
                "model.name", f"{settings.name!r} ({type(model).__name__}) is no vision transformer of timm"
            )
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model = model.to(dtype).eval().requires_grad_(False)
    blocks = find_blocks(model)
    preprocess = _preprocess(model, settings, saved)
    asked = settings.model_dump(mode="json", include={"name", "kwargs", "precision", "transform"})
    base = {"frame": settings.frame, **asked, "model_config": name.partition(".")[0], "preprocess": preprocess}
    return Tower(
        base=base,
        model=model,
        visual=model,
        blocks=blocks,
        slots=find_slots(blocks),
        feature=partial(_feature, model),
        num_prefix_tokens=model.num_prefix_tokens,
        preprocess=preprocess,
        dtype=dtype,
        transform=_transform(**preprocess),
        make_tokenizer=lambda: None,
    )


def _feature(model: Any, images_BCHW: Tensor) -> Tensor:
    pooled_BD: Tensor = model.forward_head(model.forward_features(images_BCHW), pre_logits=True)
    return pooled_BD


def _check_name(settings: ModelSettings) -> str:
    name = settings.name
    if not timm.is_model(name):
        known = timm.list_models()
        raise UserError("model.name", f"timm knows no {name!r}{nearest(name.partition('.')[0], known)}")
    if settings.frame == "dinov2" and "dinov" not in name:
        raise UserError(
            "model.name",
            f"{name!r} is no DINOv2 or DINOv3 of timm{nearest(name, timm.list_models('*dinov*'))}; "
            "for other models use the frame timm",
        )
    return name


def _tags(name: str) -> list[str]:
    return [full.partition(".")[2] for full in timm.list_pretrained(f"{name.partition('.')[0]}.*")]


def _load(settings: ModelSettings, name: str, weights: str) -> Any:
    architecture = name.partition(".")[0]
    if weights in _tags(name):
        return timm.create_model(f"{architecture}.{weights}", pretrained=True, **settings.kwargs)
    state = load_state_dict(weights, weights_only=True)
    if settings.frame == "dinov2" and "pos_embed" in state and "reg_token" not in state:
        with torch.device("meta"):
            twin: Any = timm.create_model(architecture, **settings.kwargs)
        state["pos_embed"] = resample_like_meta(state["pos_embed"], twin.patch_embed.grid_size)
    overlay = {"state_dict": state, "custom_load": False}
    if settings.kwargs.get("num_classes"):
        # Else timm takes the file's classifier for one of other classes, and leaves it out.
        overlay["num_classes"] = settings.kwargs["num_classes"]
    return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **settings.kwargs)


def resample_like_meta(position_1TD: Tensor, grid: tuple[int, int]) -> Tensor:
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
    scale = tuple(float(patches + META_OFFSET) / side for patches in grid)
    resampled_1DHW = F.interpolate(patches_1DHW, mode="bicubic", antialias=False, scale_factor=scale)
    assert tuple(resampled_1DHW.shape[-2:]) == tuple(grid)
    flat_1ND = resampled_1DHW.permute(0, 2, 3, 1).flatten(1, 2).to(position_1TD.dtype)
    return torch.cat([position_1TD[:, :1], flat_1ND], dim=1)


def _transform(size: int, **others: Any) -> Any:
    return create_transform(input_size=(3, size, size), **others)


def _preprocess(model: Any, settings: ModelSettings, saved: dict[str, Any] | None) -> dict[str, Any]:
    """`{size, interpolation, mean, std, crop_pct, crop_mode}` of the evaluation transform."""
    if saved:
        return dict(saved["preprocess"])
    config = resolve_model_data_config(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][1:]
    own = settings.transform
    return {
        "size": own.input_size or int(size[0]),
        "interpolation": own.interpolation or config["interpolation"],
        "mean": list(own.mean or config["mean"]),
        "std": list(own.std or config["std"]),
        "crop_pct": own.crop_pct or config["crop_pct"],
        "crop_mode": config["crop_mode"],
    }
