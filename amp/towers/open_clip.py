"""Towers of open_clip.

Feature of the criterion: what `visual(images)` returns with the projection left out, so after `ln_post` and
the pooling: (B, D) with D the tower's width, for `ViT-*` the normalised CLS token.
"""

import hashlib
import inspect
import json
import logging
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import SafetensorError
from torch import Tensor, nn

from amp.config import ModelSettings, TransformSettings
from amp.errors import UserError, nearest
from amp.mlp import find_slots
from amp.towers.base import Tower

# What makes the factory read files of its own choice, or run code in them: never from settings, nor from a folder.
LOADING = frozenset(inspect.signature(open_clip.create_model).parameters) - {
    "force_quick_gelu",
    "force_custom_text",
    "force_patch_dropout",
    "force_image_size",
    "force_context_length",
    "output_dict",
    "model_kwargs",
} | {"pretrained_hf"}
TOKENIZER_KWARGS = frozenset({"clean", "strip_sep_token", "language"})


def build_open_clip(settings: ModelSettings, device: str, saved: dict[str, Any] | None) -> Tower:
    """A native open_clip tower (`visual.transformer.resblocks`); see `build_tower`."""
    config = saved["model_config"] if saved else _model_config(settings.name)
    name = _register(settings.name, config)
    kwargs = dict(settings.kwargs)
    refused = sorted(LOADING & kwargs.keys())
    if refused:
        raise UserError(f"model.kwargs: {', '.join(refused)}: not allowed; weights come from model.pretrained alone")
    tokenizer_kwargs = dict(config.get("text_cfg") or {}).get("tokenizer_kwargs") or {}
    unknown = sorted(tokenizer_kwargs.keys() - TOKENIZER_KWARGS)
    if unknown:
        raise UserError(f"{settings.name}: text_cfg.tokenizer_kwargs: {', '.join(unknown)}: not allowed")
    if "img_size" in kwargs:
        kwargs["force_image_size"] = kwargs.pop("img_size")
    if saved:
        kwargs["force_preprocess_cfg"] = saved["preprocess"]
    weights = None if saved or device == "meta" else settings.pretrained
    model = _create(settings, name, weights, device, kwargs)
    visual: Any = model.visual
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        raise UserError(
            f"model.name: {settings.name!r} has a {type(visual).__name__} vision tower; "
            "of open_clip, native vision transformers can be pruned"
        )
    preprocess = dict(visual.preprocess_cfg)
    transform, preprocess = _transform(preprocess, settings.transform)
    blocks = {f"transformer.resblocks.{i}": b for i, b in enumerate(visual.transformer.resblocks)}
    base = {
        "frame": "open_clip",
        "name": settings.name,
        "kwargs": settings.kwargs,
        "precision": settings.precision,
        "model_config": config,
        "preprocess": preprocess,
        "transform": settings.transform.model_dump(mode="json"),
    }
    return Tower(
        base=base,
        model=model.eval().requires_grad_(False),
        visual=visual,
        blocks=blocks,
        slots=find_slots(blocks),
        feature=lambda images: _feature(visual, images),
        num_prefix_tokens=1,
        preprocess=preprocess,
        dtype=torch.bfloat16 if settings.precision == "bf16" else torch.float32,
        transform=transform,
        make_tokenizer=lambda: open_clip.get_tokenizer(name),
        shared=("ln_post", "proj"),
    )


def _feature(visual: Any, images_BCHW: Tensor) -> Tensor:
    projection, visual.proj = visual.proj, None
    try:
        pooled_BD: Tensor = visual(images_BCHW)
    finally:
        visual.proj = projection
    return pooled_BD


def _model_config(name: str) -> dict[str, Any]:
    """The library's own JSON of a model name, or the user's from a path."""
    if not name.endswith(".json"):
        config = open_clip.get_model_config(name.replace("/", "-"))
        if config is None:
            known = open_clip.list_models()
            raise UserError(f"model.name: open_clip knows no {name!r}{nearest(name, known)}, nor is it a .json file")
        return config
    try:
        config = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"model.name: {name}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"model.name: {name}: not a JSON file ({error})") from None
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise UserError(f"model.name: {name}: not an open_clip model, {', '.join(missing)} missing")
    return config


def _register(name: str, config: dict[str, Any]) -> str:
    """Makes `config` known to open_clip under a name that can clash with no other model."""
    if open_clip.get_model_config(name) == config:
        return name
    text = json.dumps(config, sort_keys=True)
    registered = f"{Path(name).stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if registered not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{registered}.json"
            path.write_text(text, encoding="utf-8")
            open_clip.add_model_config(path)
    return registered


def _create(settings: ModelSettings, name: str, weights: str | None, device: str, kwargs: dict[str, Any]) -> nn.Module:
    known_tags = open_clip.list_pretrained_tags_by_model(settings.name)
    if weights and weights not in known_tags and not Path(weights).is_file():
        raise UserError(
            f"model.pretrained: {weights!r} is neither a file nor a tag of {settings.name}"
            f"{nearest(weights, known_tags)} (tags: {', '.join(known_tags) or 'none'})"
        )
    try:
        with torch.device(device), quiet():
            return open_clip.create_model(
                name, pretrained=weights, precision=settings.precision, device=device, **kwargs
            )
    except pickle.UnpicklingError:
        raise UserError(
            f"model.pretrained: {weights}: holds more than tensors; refused, since loading it could run code"
        ) from None
    except (SafetensorError, EOFError, OSError) as error:
        raise UserError(f"model.pretrained: {weights}: cannot be read ({_first_line(error)})") from None
    except (AttributeError, KeyError, StopIteration, ValueError) as error:
        if weights is None:
            raise
        raise UserError(f"model.pretrained: {weights}: holds no named tensors ({_first_line(error)})") from None
    except (RuntimeError, AssertionError, TypeError) as error:
        if weights and not isinstance(error, TypeError):
            what = f"model.pretrained: {weights}: not the weights of {settings.name}"
        elif settings.kwargs:
            what = f"model.kwargs: {settings.kwargs}: open_clip refuses them"
        else:
            raise
        raise UserError(f"{what} ({_first_line(error)})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip logs that weights are random; without `pretrained` that is what was asked for."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200]


def _transform(preprocess: dict[str, Any], own: TransformSettings) -> tuple[Any, dict[str, Any]]:
    overrides = {"size": own.input_size, "interpolation": own.interpolation, "mean": own.mean, "std": own.std}
    preprocess = preprocess | {key: value for key, value in overrides.items() if value is not None}
    if own.crop_pct is None:
        return image_transform_v2(PreprocessCfg(**preprocess), is_train=False), preprocess
    from timm.data import create_transform

    size = preprocess["size"]
    return (
        create_transform(
            input_size=(3, *(size if isinstance(size, (tuple, list)) else (size, size))),
            interpolation=preprocess["interpolation"],
            mean=tuple(preprocess["mean"]),
            std=tuple(preprocess["std"]),
            crop_pct=own.crop_pct,
        ),
        preprocess,
    )
