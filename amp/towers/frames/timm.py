"""Towers of timm: any plain vision transformer by name.

Feature of the criterion: (B, D), after the final norm and the pooling, before the classifier: what
`forward_head(forward_features(images), pre_logits=True)` returns.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor

from amp.errors import UserError, nearest
from amp.settings.model import ModelSettings
from amp.towers.base import Tower, building, check_weights, refuse_loading
from amp.towers.find_slots import find_blocks, find_slots
from amp.towers.library import Library
from amp.towers.weights import without_weights

# What makes the factory read files of its own choice: never from settings, nor from a folder.
LOADING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable", "no_jit"}
)

State = dict[str, Tensor]


def build(
    settings: ModelSettings,
    device: str,
    saved: dict[str, Any] | None,
    convert: Callable[[ModelSettings, State], State] | None = None,
) -> Tower:
    """A tower of timm; see `amp.towers.build_tower`.

    Args:
        convert: what a weights file needs before timm reads it.
    """
    name = settings.name
    if not knows(name):
        raise UserError("model.name", f"timm knows no {name!r}{nearest(name.partition('.')[0], timm.list_models())}")
    refuse_loading(settings.kwargs, LOADING)
    weights = None if saved or device == "meta" else settings.pretrained
    if weights:
        check_weights(settings, _tags(name))
    empty = device != "meta" and bool(saved or weights)
    with building(settings, weights, "timm"), without_weights(weights) if empty else torch.device(device):
        model: Any = (
            timm.create_model(name, **settings.kwargs) if weights is None else _load(settings, weights, convert)
        )
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


def _tags(name: str) -> list[str]:
    return [full.partition(".")[2] for full in timm.list_pretrained(f"{name.partition('.')[0]}.*")]


def _load(settings: ModelSettings, weights: str, convert: Callable[[ModelSettings, State], State] | None) -> Any:
    architecture = settings.name.partition(".")[0]
    if weights in _tags(settings.name):
        return timm.create_model(f"{architecture}.{weights}", pretrained=True, **settings.kwargs)
    state = load_state_dict(weights, weights_only=True)
    overlay = {"state_dict": convert(settings, state) if convert else state, "custom_load": False}
    if settings.kwargs.get("num_classes"):
        # Else timm takes the file's classifier for one of other classes, and leaves it out.
        overlay["num_classes"] = settings.kwargs["num_classes"]
    return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **settings.kwargs)


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


def knows(name: str) -> bool:
    """Whether timm has a model of this name."""
    return bool(timm.is_model(name))


LIBRARY = Library(
    known_as="timm",
    knows=knows,
    build=build,
    families=[
        ("ViT, DeiT, BEiT, EVA01, SigLIP", "plain", "vit_base_patch16_224"),
        ("BEiT-3", "plain + norm", "beit3_base_patch16_224"),
        ("EVA02 tiny and small; base and large", "packed gate; split gate + norm", "eva02_base_patch14_224"),
    ],
    names=lambda: [name for family in ("vit_*", "deit*", "beit*", "eva*") for name in timm.list_models(family)],
)
