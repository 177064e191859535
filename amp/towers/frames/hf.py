"""Hugging Face transformers: vision models and dual encoders, from a local folder or a hub id.

Feature of the criterion: (B, D), D the tower's width, after the final norm, before any projection or classifier.

| family | feature |
|---|---|
| CLIP, MetaCLIP 2, MLCD | `pooler_output`: the CLS token after `post_layernorm` |
| SigLIP, AIMv2 | `pooler_output`: the attention pool; without that head: the mean of the normalised tokens |
| BEiT, Data2Vec | `pooler_output`: the mean of the patch tokens, normalised, or the CLS token, as the config says |
| ViT, DeiT, ViT-MSN, FLAVA, DINOv2 (registers too), DINOv3 | the normalised CLS token; never a dense + tanh pooler |
| I-JEPA | the mean of the normalised tokens |

Only classes that transformers ships are built, from JSON; weights are safetensors, or pickles of nothing but tensors.
"""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from amp.errors import UserError, nearest
from amp.settings.model import GivenModelSettings, ModelSettings
from amp.towers.base import Tower, building, first_line, quiet
from amp.towers.bounds import check_numbers
from amp.towers.frames._hf_families import Family, family_of
from amp.towers.frames._hf_inputs import override, preprocessing, tokenize, transform, usual_preprocessing
from amp.towers.frames._tokenizer import Tokenizer
from amp.towers.given import builds_the_same, dtype_of, not_rebuilt, precision_of
from amp.towers.library import Library
from amp.towers.mlps.find_slots import find_blocks, find_slots
from amp.towers.native.hf import NATIVE
from amp.towers.preprocess import square
from amp.towers.weights import without_weights

disable_progress_bar()  # The console is the run's.
# Of a config, what would choose code or files, and what says nothing of the architecture.
DROPPED = {"auto_map", "attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config"}
DROPPED |= {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "architectures"}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def build(settings: ModelSettings, device: str, saved: dict[str, Any] | None) -> Tower:
    """A transformers tower; see `amp.towers.build_tower`."""
    described = saved["model_config"] if saved else _describe(settings)
    values = _without_dropped(described["config"])
    with quiet():
        config: Any = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(values)
    family_of(settings, getattr(config, "vision_config", config))
    weights = None if saved or device == "meta" else _weights(settings)
    empty = device != "meta" and saved is not None
    with building(settings, weights, "transformers"), without_weights(device=device) if empty else nullcontext():
        model: Any = _model(settings, described["class"], config, weights, "meta" if device == "meta" else "cpu")
    if settings.precision == "bf16":
        # Parameters alone: rotary frequencies are buffers, and bf16 would move every patch.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    processed = saved["preprocess"] if saved else _preprocessing(settings, _visual(model).config, settings.name)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    return _around(model.eval().requires_grad_(False), settings, described, processed, dtype)


def wrap(model: Any, asked: GivenModelSettings) -> Tower | None:
    """A tower around a model of transformers, as it is; None around any other model."""
    if not isinstance(model, transformers.PreTrainedModel):
        return None
    name = asked.name or model.name_or_path
    settings = ModelSettings(
        frame=asked.frame or "hf",
        name=name or type(model).__name__,
        precision=precision_of(_visual(model)),
        kwargs=asked.kwargs or {},
        transform=asked.transform,
    )
    values = json.loads(model.config.to_json_string(use_diff=False))
    described = {"class": type(model).__name__, "config": _without_dropped(values)}
    processed = _preprocessing(settings, _visual(model).config, name)
    tower = _around(model, settings, described, processed, dtype_of(_visual(model)))
    kind: Any = getattr(transformers, type(model).__name__, None)
    return tower if builds_the_same(model, lambda: kind._from_config(model.config)) else not_rebuilt(tower)


def _preprocessing(settings: ModelSettings, vision_config: Any, name: str | None) -> dict[str, Any]:
    """`name` of the folder or hub id that may hold an image processor, or nothing."""
    family, built = family_of(settings, vision_config), square(settings, vision_config.image_size)
    side = square(settings, settings.kwargs.get("img_size", built)) if family.any_size else built
    if not name:
        return usual_preprocessing(side, family.statistics)
    return preprocessing(settings, side, family.statistics, family.any_size)


def _around(
    model: Any, settings: ModelSettings, described: dict[str, Any], processed: dict[str, Any], dtype: torch.dtype
) -> Tower:
    visual: Any = _visual(model)
    family, side = family_of(settings, visual.config), square(settings, visual.config.image_size)
    preprocess = override(processed, settings.transform)
    if preprocess["size"] != side and not family.any_size:
        raise UserError(
            "model.transform.input_size",
            f"{preprocess['size']}: {settings.name} takes images of {side} px; set model.kwargs.img_size to change "
            "that",
        )
    blocks = find_blocks(visual)
    asked = settings.model_dump(mode="json", include={"name", "kwargs", "precision", "transform"})
    dual = hasattr(model, "get_text_features")
    return Tower(
        base={"frame": "hf", **asked, "model_config": described, "preprocess": preprocess},
        model=model,
        visual=visual,
        blocks=blocks,
        slots=find_slots(blocks, partial(_run, visual, side)),
        feature=partial(_feature, visual, family),
        num_prefix_tokens=family.prefix + getattr(visual.config, "num_register_tokens", 0),
        preprocess=preprocess,
        dtype=dtype,
        transform=transform(preprocess),
        make_tokenizer=lambda: _tokenizer(settings.name, model.config) if dual else None,
        encode_image=partial(_embed_images, model) if dual else None,
        encode_text=partial(_embed_texts, model) if dual else None,
    )


def _tokenizer(name: str, config: Any) -> Tokenizer:
    text = config.text_config
    return Tokenizer(name, partial(tokenize, name, config), text.max_position_embeddings, text.vocab_size)


def _run(visual: nn.Module, side: int) -> None:
    """On one blank image."""
    visual(torch.zeros(1, 3, side, side, dtype=dtype_of(visual), device=next(visual.parameters()).device))


def _feature(visual: Any, family: Family, images_BCHW: Tensor) -> Tensor:
    output = visual(images_BCHW, return_dict=True)
    if family.pooled and output.get("pooler_output") is not None:
        return output.pooler_output
    tokens_BTD: Tensor = output.last_hidden_state
    if getattr(visual.config, "use_mean_pooling", False):
        return tokens_BTD[:, 1:].mean(1)
    return tokens_BTD[:, 0] if family.prefix else tokens_BTD.mean(1)


def _embed_images(model: Any, images_BCHW: Tensor) -> Tensor:
    embeddings_BE: Tensor = model.get_image_features(images_BCHW, return_dict=True).pooler_output
    return embeddings_BE


def _embed_texts(model: Any, ids_NT: Tensor) -> Tensor:
    """Towers that read at an end token are causal, so what comes after it, the padding, is nothing to them. A mask says
    so, for without one AIMv2's is not. SigLIP's tower has no mask: it was trained to see its padding."""
    causal = hasattr(model.text_model, "eos_token_id")
    mask_11TT = torch.ones(1, 1, ids_NT.shape[1], ids_NT.shape[1], dtype=torch.bool, device=ids_NT.device).tril()
    output = model.get_text_features(ids_NT, attention_mask=mask_11TT if causal else None, return_dict=True)
    embeddings_NE: Tensor = output.pooler_output
    return embeddings_NE


def _describe(settings: ModelSettings) -> dict[str, Any]:
    """`{class, config}` of a folder or hub id, JSON-able, with `kwargs` in place."""
    name = settings.name
    if _is_folder("model.name", name) and not (Path(name) / "config.json").is_file():
        raise UserError("model.name", f"{name}: the folder holds no config.json")
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # A config.json may hold anything, and the hub may fail in any way.
        raise UserError("model.name", f"{name}: not a transformers model ({first_line(error)})") from None
    if getattr(config, "quantization_config", None):
        raise UserError("model.name", f"{name}: quantised weights cannot be pruned")
    vision_config = getattr(config, "vision_config", config)
    family_of(settings, vision_config)
    values = json.loads(config.to_json_string(use_diff=False))
    check_numbers("model.name", f"{name}: ", values)
    vision_values = values.get("vision_config", values)
    for key, value in settings.kwargs.items():
        if key == "img_size" and family_of(settings, vision_config).any_size:
            continue  # Its images are resized, not its weights.
        key = "image_size" if key == "img_size" else key
        if key not in vision_values or key in DROPPED | {"model_type"}:
            raise UserError("model.kwargs", f"{key}: not a setting of {name}{nearest(key, list(vision_values))}")
        vision_values[key] = value
    architecture = next(iter(config.architectures or []), None)
    if architecture is None:
        with torch.device("meta"):
            architecture = type(transformers.AutoModel.from_config(config)).__name__
    return {"class": architecture, "config": _without_dropped(values)}


def _without_dropped(values: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in values.items() if key not in DROPPED}
    return {key: _without_dropped(value) if isinstance(value, dict) else value for key, value in own.items()}


def _is_folder(key: str, name: str) -> bool:
    """A local folder, else a hub id; raises UserError for what is neither."""
    path = Path(name)
    if not path.is_dir() and (path.exists() or path.is_absolute() or name.startswith(".") or name.count("/") != 1):
        raise UserError(key, f"{name!r} is neither a folder nor a hub id (owner/model)")
    return path.is_dir()


def _weights(settings: ModelSettings) -> str:
    """The folder or hub id that the weights come from; there are no random ones."""
    source = settings.pretrained or settings.name
    if _is_folder("model.pretrained", source) and not any((Path(source) / file).is_file() for file in WEIGHTS):
        raise UserError("model.pretrained", f"{source}: the folder holds none of {', '.join(WEIGHTS)}")
    return source


def _model(settings: ModelSettings, class_name: str, config: Any, weights: str | None, device: str) -> nn.Module:
    """The whole model in fp32."""
    kind: Any = getattr(transformers, class_name, None)
    own = getattr(kind, "config_class", None)
    config = config if own is type(config) else getattr(config, "vision_config", config)
    # A backbone gives feature maps, not tokens.
    if own is not type(config) or class_name.endswith("Backbone"):
        raise UserError(
            "model.name", f"{settings.name}: {class_name!r} is not a {config.model_type} model of transformers"
        )
    if weights is None:
        with torch.device(device):
            empty: nn.Module = kind._from_config(config, dtype=torch.float32)
        return empty
    fixed = {"config": config, "dtype": torch.float32, "weights_only": True, "trust_remote_code": False}
    loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(weights, output_loading_info=True, **fixed)
    model, report = loaded
    # ViT's pooler is left out of many files, and no feature is taken from it.
    if missing := sorted(key for key in report["missing_keys"] if "pooler.dense." not in key):
        raise RuntimeError(f"{len(missing)} tensors missing, the first is {missing[0]}")
    bare: Any = model.base_model
    parts = {name.partition(".")[0] for name in (*model.state_dict(), *bare.state_dict())}
    # A head of another task is no part of this model; a layer is, and so is what a layer has more than the config says.
    if more := sorted(key for key in report["unexpected_keys"] if key.partition(".")[0] in parts and not _is_idle(key)):
        raise RuntimeError(f"{len(more)} tensors that its config.json does not describe, the first is {more[0]}")
    return model


def _is_idle(key: str) -> bool:
    """Of a tensor in a file: an index that is computed nowadays, or a pooler that no feature is taken from."""
    return key.endswith(("position_ids", "relative_position_index")) or "pooler.dense." in key


def _visual(model: Any) -> nn.Module:
    # Not `base_model` at once: DINOv3's is its encoder, without the embeddings.
    whole = model if hasattr(model, "embeddings") else model.base_model
    return getattr(model, "vision_model", whole)


def knows(name: str) -> bool:
    """Whether it is a local folder of a transformers model; of a hub id nobody can tell offline."""
    try:
        return "model_type" in json.loads((Path(name) / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


LIBRARY = Library(
    known_as="transformers",
    knows=knows,
    build=build,
    wrap=wrap,
    families=[
        ("CLIP, SigLIP, ViT, DeiT, BEiT, DINOv2, DINOv3", "plain", "a folder or hub id"),
        ("Data2Vec, FLAVA's image tower", "plain, in two modules", "a folder or hub id"),
        ("DINOv2 giant, DINOv3 gated, AIMv2", "split gate", "a folder or hub id"),
    ],
    native=NATIVE,
    folders=True,
)
