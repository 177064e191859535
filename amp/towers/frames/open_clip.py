"""open_clip: its native towers, CoCa, and towers from timm (EVA, SigLIP, PE, ViTamin).

Feature of the criterion: (B, D), D the tower's width. Native: what `visual(images)` returns with the projection left
out, so after `ln_post` and the pooling; for `ViT-*` the normalised CLS token. Trunks of timm: after the final norm and
the pooling, before the trunk's head and open_clip's projection.
"""

import hashlib
import inspect
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import Tensor, nn

from amp.errors import UserError
from amp.settings.model import GivenModelSettings, ModelSettings, TransformSettings
from amp.towers.base import Tower, building, check_weights, refuse_loading
from amp.towers.bounds import check_clip
from amp.towers.frames._open_clip_names import config_of, find_name, model_config, side_in, side_of
from amp.towers.frames._tokenizer import Tokenizer, check_ids
from amp.towers.given import builds_the_same, dtype_of, made_by, not_rebuilt, precision_of
from amp.towers.library import Library
from amp.towers.mlps.find_slots import find_blocks, find_slots
from amp.towers.native.open_clip import NATIVE
from amp.towers.preprocess import agreed, square
from amp.towers.weights import State, averaged_note, without_weights

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


def build(
    settings: ModelSettings,
    device: str,
    saved: dict[str, Any] | None,
    config: dict[str, Any] | None = None,
    convert: Callable[[State], State] | None = None,
) -> Tower:
    """An open_clip tower; see `amp.towers.build_tower`.

    Args:
        config: the model's JSON, where its name does not tell.
        convert: from a weights file's names to open_clip's, where open_clip does not know them.
    """
    config = saved["model_config"] if saved else config or model_config(settings.name)
    check_clip("model.name", f"{settings.name}: ", config)
    name = _register(settings.name, config)
    kwargs = _kwargs(settings, config)
    images, notes = (saved["preprocess"], ()) if saved else _images_of(settings)
    kwargs["force_preprocess_cfg"] = images
    weights = None if saved or device == "meta" else settings.pretrained
    if weights:
        check_weights(settings, open_clip.list_pretrained_tags_by_model(settings.name))
    empty = device != "meta" and bool(saved or weights)
    with building(settings, weights, "open_clip"), without_weights(weights, device) if empty else torch.device(device):
        place = {"precision": settings.precision, "device": "meta" if empty else device}
        model: Any = open_clip.create_model(name, pretrained=None if convert else weights, **place, **kwargs)
        if convert and weights:
            model.load_state_dict(convert(load_state_dict(weights)))
    if settings.precision == "bf16":
        _lower_the_rest(model)
    preprocess = dict(model.visual.preprocess_cfg) if _is_supported(model) else {}
    notes += averaged_note(weights) if weights and Path(weights).is_file() else ()
    return _around(model.eval().requires_grad_(False), settings, config, name, preprocess, notes)


def _lower_the_rest(model: nn.Module) -> None:
    """Casts what open_clip's bf16 leaves in fp32 although its result meets weights in bf16: the queries of an attention
    pool, CoCa's text token, and LayerScale."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("query", "cls_emb", "gamma"):
                parameter.data = parameter.data.bfloat16()


def check(settings: ModelSettings) -> None:
    """As of `Library`."""
    model_config(settings.name)
    check_weights(settings, open_clip.list_pretrained_tags_by_model(settings.name))


def wrap(model: Any, asked: GivenModelSettings) -> Tower | None:
    """A tower around a model of open_clip, as it is; None around any other model."""
    if not made_by(model, "open_clip") or not hasattr(model, "visual"):
        return None
    if not _is_supported(model):
        raise _not_supported(asked.name or type(model).__name__, model)
    built = {} if asked.kwargs is None else dict(asked.kwargs)
    found = (asked.name, model_config(asked.name)) if asked.name else find_name(model)
    name, config = found or (None, None)
    if config and asked.kwargs is None and side_in(config) != side_of(model.visual.image_size):
        built = {"img_size": side_of(model.visual.image_size)}
    settings = ModelSettings(
        frame=asked.frame or "open_clip",
        name=name or type(model).__name__,
        precision=precision_of(model.visual),
        kwargs=built,
        transform=asked.transform,
    )
    preprocess = {**asdict(PreprocessCfg()), **dict(getattr(model.visual, "preprocess_cfg", {}))}
    preprocess["size"] = model.visual.image_size
    if config is None:
        return not_rebuilt(_around(model, settings, {}, None, preprocess, dtype=dtype_of(model.visual)))
    registered = _register(settings.name, config)
    tower = _around(model, settings, config, registered, preprocess, dtype=dtype_of(model.visual))
    arguments = _kwargs(settings, config)
    builds = builds_the_same(model, lambda: open_clip.create_model(registered, device="meta", **arguments))
    return tower if builds else not_rebuilt(tower)


def _is_supported(model: Any) -> bool:
    return isinstance(model.visual, (open_clip.transformer.VisionTransformer, TimmModel))


def _not_supported(name: str, model: Any) -> UserError:
    return UserError(
        "model.name",
        f"{name!r} has a {type(model.visual).__name__} vision tower; "
        "open_clip models can be pruned if their vision tower is native or a vision transformer of timm",
    )


def _around(
    model: Any,
    settings: ModelSettings,
    config: dict[str, Any],
    registered: str | None,
    preprocess: dict[str, Any],
    notes: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
) -> Tower:
    # Without a name of its own (`registered`) a model has no tokenizer. `dtype` None: that of the settings.
    if not _is_supported(model):
        raise _not_supported(settings.name, model)
    visual = model.visual
    native = not isinstance(visual, TimmModel)
    transform, preprocess = _transform(preprocess, square(settings, preprocess["size"]), settings.transform)
    blocks = find_blocks(visual)
    asked = settings.model_dump(mode="json", include={"name", "kwargs", "precision", "transform"})
    base = {"frame": settings.frame or "open_clip", **asked, "model_config": config, "preprocess": preprocess}
    return Tower(
        base=base,
        model=model,
        visual=visual,
        blocks=blocks,
        slots=find_slots(blocks),
        feature=partial(_native_feature if native else _trunk_feature, visual),
        num_prefix_tokens=1 if native else visual.trunk.num_prefix_tokens,
        preprocess=preprocess,
        dtype=dtype or (torch.bfloat16 if settings.precision == "bf16" else torch.float32),
        transform=transform,
        make_tokenizer=partial(_tokenizer, settings.name, registered, model) if registered else lambda: None,
        encode_image=model.encode_image,
        encode_text=partial(_embed_texts, model, settings.name),
        notes=notes,
    )


def _tokenizer(shown: str, name: str, model: Any) -> Tokenizer:
    context = getattr(model, "context_length", None) or getattr(getattr(model, "text", None), "context_length", None)
    return Tokenizer(shown, lambda: open_clip.get_tokenizer(name, context_length=context), context)


def _embed_texts(model: Any, name: str, ids_NT: Tensor) -> Tensor:
    text = getattr(model, "text", model)
    embedding = getattr(text, "token_embedding", None) or text.transformer.get_input_embeddings()
    check_ids(name, ids_NT, embedding.num_embeddings)
    return model.encode_text(ids_NT)


def _images_of(settings: ModelSettings) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the weights say of their images, and what to tell the user of it.

    A tag says it; of a file, and of none, all the tags of the name that agree; where they do not, open_clip's default.
    """
    name = settings.name.replace("/", "-")
    by_tag = {tag: _of_images(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    if settings.pretrained in by_tag:
        return by_tag[settings.pretrained], ()
    default = merge_preprocess_dict(PreprocessCfg(), {})
    default.pop("size")
    own = [*by_tag.values()] or [default]
    if all(images == own[0] for images in own):
        return own[0], ()
    told = settings.pretrained is None or {"mean", "std"} <= settings.transform.model_dump(exclude_none=True).keys()
    return default, () if told else agreed(name, by_tag, default)


def _of_images(name: str, tag: str) -> dict[str, Any]:
    images = merge_preprocess_dict(PreprocessCfg(), open_clip.get_pretrained_cfg(name, tag))
    images.pop("size")  # Towers say it themselves.
    return images


def _kwargs(settings: ModelSettings, config: dict[str, Any]) -> dict[str, Any]:
    """The factory's arguments; those that could load a file or run code are refused."""
    refuse_loading(settings.kwargs, LOADING)
    tokenizer_kwargs = dict(config.get("text_cfg") or {}).get("tokenizer_kwargs") or {}
    unknown = sorted(tokenizer_kwargs.keys() - TOKENIZER_KWARGS)
    if unknown:
        raise UserError(settings.name, f"text_cfg.tokenizer_kwargs: {', '.join(unknown)}: not allowed")
    kwargs = dict(settings.kwargs)
    if "img_size" in kwargs:
        kwargs["force_image_size"] = kwargs.pop("img_size")
    return kwargs


def _native_feature(visual: Any, images_BCHW: Tensor) -> Tensor:
    projection, visual.proj = visual.proj, None
    try:
        output = visual(images_BCHW)
    finally:
        visual.proj = projection
    # CoCa's tower gives its tokens too.
    pooled_BD: Tensor = output[0] if isinstance(output, tuple) else output
    return pooled_BD


def _trunk_feature(visual: Any, images_BCHW: Tensor) -> Tensor:
    trunk = visual.trunk
    pooled_BD: Tensor = trunk.forward_head(trunk.forward_features(images_BCHW), pre_logits=True)
    return pooled_BD


def _register(name: str, config: dict[str, Any]) -> str:
    """Makes `config` known to open_clip under a name that can clash with no other model."""
    if config_of(name) == config:
        return name
    text = json.dumps(config, sort_keys=True)
    registered = f"{Path(name).stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if registered not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{registered}.json"
            path.write_text(text, encoding="utf-8")
            open_clip.add_model_config(path)
    return registered


def _transform(preprocess: dict[str, Any], side: int, own: TransformSettings) -> tuple[Any, dict[str, Any]]:
    overrides = {"size": own.input_size, "interpolation": own.interpolation, "mean": own.mean, "std": own.std}
    preprocess = preprocess | {key: value for key, value in overrides.items() if value is not None}
    if own.crop_pct is None:
        return image_transform_v2(PreprocessCfg(**preprocess), is_train=False), preprocess
    from timm.data import create_transform

    preprocess |= {"resize_mode": "shortest", "crop_pct": own.crop_pct}
    side = own.input_size or side
    return (
        create_transform(
            input_size=(3, side, side),
            interpolation=preprocess["interpolation"],
            mean=tuple(preprocess["mean"]),
            std=tuple(preprocess["std"]),
            crop_pct=own.crop_pct,
        ),
        preprocess,
    )


def knows(name: str) -> bool:
    """Whether open_clip has a model of this name, or it is a model JSON."""
    return name.endswith(".json") or config_of(name.replace("/", "-")) is not None


LIBRARY = Library(
    known_as="open_clip",
    knows=knows,
    build=build,
    wrap=wrap,
    check=check,
    tags=open_clip.list_pretrained_tags_by_model,
    families=[
        ("native ViT and CoCa", "plain", "ViT-g-14"),
        ("SigLIP, SigLIP2, PE, EVA01 trunks", "plain", "ViT-SO400M-14-SigLIP"),
        ("EVA02 base and large trunks", "split gate + norm", "EVA02-L-14"),
        ("ViTamin trunks", "split gate", "ViTamin-L"),
    ],
    native=NATIVE,
    names=open_clip.list_models,
)
