"""timm: every plain vision transformer, by name.

Feature of the criterion: (B, D). Of DINOv2 and DINOv3, unless `model.kwargs` says `global_pool`: the CLS token after
the final norm. Of all others, after the final norm and the pooling, before the classifier: what
`forward_head(forward_features(images), pre_logits=True)` returns.

Images are those of the weights' tag, else of the tag in the name (`name.tag`), else of timm's default tag.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import clean_state_dict, get_pretrained_cfg
from torch import Tensor

from amp.errors import UserError, nearest
from amp.settings.model import GivenModelSettings, ModelSettings
from amp.towers.base import Tower, building, check_weights, quiet, refuse_loading
from amp.towers.given import builds_the_same, dtype_of, made_by, not_rebuilt, precision_of
from amp.towers.library import Library
from amp.towers.mlps.find_slots import find_blocks, find_slots
from amp.towers.native.timm import NATIVE
from amp.towers.preprocess import agreed, square
from amp.towers.weights import EMA_FIRST, State, averaged_note, read_state, without_weights

# What makes the factory read files of its own choice: never from settings, nor from a folder.
LOADING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable", "no_jit"}
)


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
    _check_name(name)
    refuse_loading(settings.kwargs, LOADING)
    weights = None if saved or device == "meta" else settings.pretrained
    if weights:
        check_weights(settings, _tags(name))
    full_name = saved.get("variant", name) if saved else _full_name(settings)
    if not saved:
        settings = _with_own_head(settings, full_name)
    empty = device != "meta" and bool(saved or weights)
    with building(settings, weights, "timm"), without_weights(weights, device) if empty else torch.device(device):
        if weights is None:
            model: Any = timm.create_model(full_name, **settings.kwargs)
        else:
            model = _load(settings, full_name, weights, convert)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model = model.to(dtype).eval().requires_grad_(False)
    preprocess = _preprocess(model, settings, saved)
    notes = () if saved else _notes(settings, weights, preprocess)
    return _around(model, settings, full_name, preprocess, dtype, notes)


def check(settings: ModelSettings) -> None:
    """As of `Library`."""
    _check_name(settings.name)
    check_weights(settings, _tags(settings.name))
    _full_name(settings)


def _check_name(name: str) -> None:
    if not knows(name):
        raise UserError("model.name", f"timm knows no {name!r}{nearest(name.partition('.')[0], timm.list_models())}")


def wrap(model: Any, asked: GivenModelSettings) -> Tower | None:
    """A tower around a model of timm, as it is; None around any other model."""
    if not made_by(model, "timm"):
        return None
    described = getattr(model, "pretrained_cfg", None) or {}
    architecture, tag = (str(described.get(key) or "") for key in ("architecture", "tag"))
    name = asked.name or architecture
    known = bool(name) and knows(name)
    kwargs = asked.kwargs if asked.kwargs is not None else _arguments_of(model, name) if known else {}
    settings = ModelSettings(
        frame=asked.frame or "timm",
        name=name or type(model).__name__,
        precision=precision_of(model),
        kwargs=kwargs or {},
        transform=asked.transform,
    )
    full_name = f"{architecture}.{tag}" if tag and name == architecture else settings.name
    tower = _around(model, settings, full_name, _preprocess(model, settings, None), dtype_of(model))
    builds = known and builds_the_same(model, lambda: timm.create_model(full_name, **settings.kwargs))
    return tower if builds else not_rebuilt(tower)


# What a factory's argument is in a model that it made.
_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "num_classes": lambda model: model.num_classes,
    "img_size": lambda model: model.patch_embed.img_size[0],
    "patch_size": lambda model: model.patch_embed.patch_size[0],
    "global_pool": lambda model: model.global_pool,
    "embed_dim": lambda model: model.embed_dim,
    "depth": lambda model: len(model.blocks),
    "num_heads": lambda model: model.blocks[0].attn.num_heads,
    "mlp_ratio": lambda model: model.blocks[0].mlp.fc1.out_features / model.embed_dim,
}


def _arguments_of(model: Any, name: str) -> dict[str, Any]:
    """The arguments in which a model differs from the one that the factory makes of its name alone."""
    with quiet(), torch.device("meta"):
        usual = timm.create_model(name)
    found = {}
    for key, read in _ARGUMENTS.items():
        try:
            own, default = read(model), read(usual)
        except (AttributeError, IndexError, TypeError):
            continue
        if own != default:
            found[key] = own
    return found


def _around(
    model: Any,
    settings: ModelSettings,
    full_name: str,
    preprocess: dict[str, Any],
    dtype: torch.dtype,
    notes: tuple[str, ...] = (),
) -> Tower:
    name = settings.name
    for method in ("forward_features", "forward_head", "num_prefix_tokens"):
        if not hasattr(model, method):
            raise UserError(
                "model.name",
                f"{name!r} ({type(model).__name__}) is not a plain vision transformer of timm; amp models lists "
                "what can be pruned",
            )
    asked = settings.model_dump(mode="json", include={"name", "kwargs", "precision", "transform"})
    described = {"model_config": name.partition(".")[0], "variant": full_name, "preprocess": preprocess}
    blocks = find_blocks(model)
    return Tower(
        base={"frame": settings.frame or "timm", **asked, **described},
        model=model,
        visual=model,
        blocks=blocks,
        slots=find_slots(blocks),
        feature=partial(_cls_token if _is_dino(name) and "global_pool" not in settings.kwargs else _feature, model),
        num_prefix_tokens=model.num_prefix_tokens,
        preprocess=preprocess,
        dtype=dtype,
        transform=_transform(**preprocess),
        make_tokenizer=lambda: None,
        notes=notes,
    )


def _is_dino(name: str) -> bool:
    return "dinov" in name


def _cls_token(model: Any, images_BCHW: Tensor) -> Tensor:
    tokens_BTD: Tensor = model.forward_features(images_BCHW)
    return tokens_BTD[:, 0]


def _feature(model: Any, images_BCHW: Tensor) -> Tensor:
    pooled_BD: Tensor = model.forward_head(model.forward_features(images_BCHW), pre_logits=True)
    return pooled_BD


def _tags(name: str) -> list[str]:
    return [full.partition(".")[2] for full in timm.list_pretrained(f"{name.partition('.')[0]}.*")]


def _full_name(settings: ModelSettings) -> str:
    """With the tag that says what the weights are: theirs, else the one in the name."""
    architecture, _, tag = settings.name.partition(".")
    if settings.pretrained in _tags(architecture):
        return f"{architecture}.{settings.pretrained}"
    try:
        get_pretrained_cfg(settings.name, allow_unregistered=False)
    except RuntimeError:
        known = _tags(architecture)
        hint = f"{nearest(tag, known)} (tags: {', '.join(known) or 'none'})"
        raise UserError("model.name", f"timm has no tag {tag!r} of {architecture}{hint}") from None
    return settings.name


def _with_own_head(settings: ModelSettings, full_name: str) -> ModelSettings:
    """The settings with `num_classes` of the classifier that the weights file holds, unless the user says it."""
    path = settings.pretrained
    if path is None or "num_classes" in settings.kwargs or not Path(path).is_file():
        return settings
    try:
        state = read_state(path, EMA_FIRST)
    except UserError:
        return settings  # What is wrong with it is said where it is loaded.
    config = get_pretrained_cfg(full_name, allow_unregistered=False)
    names = _classifiers(full_name)
    heads = [tensor for key, tensor in state.items() for name in names if key.endswith(f"{name}.weight")]
    if not heads or len(heads) != len(names) or len(heads[0]) == config.num_classes:
        return settings
    return settings.model_copy(update={"kwargs": {**settings.kwargs, "num_classes": len(heads[0])}})


def _classifiers(full_name: str) -> tuple[str, ...]:
    """Names of the linear layers that classify, of the distilled DeiT two."""
    names = get_pretrained_cfg(full_name, allow_unregistered=False).classifier or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _load(
    settings: ModelSettings, full_name: str, weights: str, convert: Callable[[ModelSettings, State], State] | None
) -> Any:
    if weights in _tags(settings.name):
        return timm.create_model(full_name, pretrained=True, **settings.kwargs)
    state = clean_state_dict(read_state(weights, EMA_FIRST))
    classes = settings.kwargs.get("num_classes")
    if classes == 0:
        heads = tuple(f"{name}." for name in _classifiers(full_name))
        state = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
    overlay = {"state_dict": convert(settings, state) if convert else state, "custom_load": False}
    if classes is not None:
        # Else timm takes the file's classifier for one of other classes, and leaves out whatever does not fit.
        overlay["num_classes"] = classes
    return timm.create_model(full_name, pretrained=True, pretrained_cfg_overlay=overlay, **settings.kwargs)


def _notes(settings: ModelSettings, weights: str | None, preprocess: dict[str, Any]) -> tuple[str, ...]:
    """Of which weights a file gives, and of tags that do not agree where neither it nor the name says one."""
    name, said = settings.name, settings.transform.model_dump(exclude_none=True).keys()
    notes = averaged_note(weights, EMA_FIRST) if weights and Path(weights).is_file() else ()
    if "." in name or settings.pretrained in (None, *_tags(name)) or {"mean", "std"} <= said:
        return notes
    by_tag = {tag: get_pretrained_cfg(f"{name}.{tag}", allow_unregistered=False) for tag in _tags(name)}
    images = {tag: {key: getattr(own, key) for key in ("mean", "std", "interpolation")} for tag, own in by_tag.items()}
    return notes + agreed(name, images, preprocess)


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
        "size": own.input_size or square(settings, size),
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
    wrap=wrap,
    check=check,
    tags=_tags,
    families=[
        ("ViT, DeiT, BEiT, EVA01, SigLIP", "plain", "vit_base_patch16_224"),
        ("BEiT-3", "plain + norm", "beit3_base_patch16_224"),
        ("EVA02 tiny and small; base and large", "packed gate; split gate + norm", "eva02_base_patch14_224"),
    ],
    native=NATIVE,
    names=lambda: [name for family in ("vit_*", "deit*", "beit*", "eva*") for name in timm.list_models(family)],
    checkpoint_keys=EMA_FIRST,
)
