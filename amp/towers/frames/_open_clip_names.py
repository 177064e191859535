"""What open_clip calls its models; and which of them a model object is, since the objects do not say."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip.timm_model import TimmModel

from amp.errors import UserError, joined, nearest
from amp.towers.base import offline
from amp.towers.bounds import read_json
from amp.towers.given import builds_the_same


def model_config(name: str) -> dict[str, Any]:
    """The library's own JSON of a model name, or the user's from a path."""
    if not name.endswith(".json"):
        config = config_of(name.replace("/", "-"))
        if config is None:
            if Path(name).is_dir():
                raise UserError(
                    "model.name",
                    f"{name} is a folder, but not of a dense model; to make another size of a pruned model, repeat the "
                    "command that pruned it with that size",
                )
            told = f"open_clip knows no {name!r}{nearest(name, open_clip.list_models())}"
            raise UserError("model.name", joined(told, "it may also be a model JSON or a pruned/ folder"))
        return config
    return read_json(name, "model.name")


def config_of(name: str) -> Any:
    """The library's own JSON of a name; of one with a scheme (hf-hub:, local-dir:) it would be fetched: None."""
    return None if ":" in name else open_clip.get_model_config(name)


def find_name(model: Any) -> tuple[str, dict[str, Any]] | None:
    """The name and the JSON of the one model that is built like this one; None where there is none, or several."""
    side, found = side_of(model.visual.image_size), []
    with offline():
        for name in open_clip.list_models():
            config = open_clip.get_model_config(name)
            build = partial(open_clip.create_model, name, device="meta", force_image_size=side)
            if _looks_like(config, model) and builds_the_same(model, build):
                found.append((name, config))
    exact = [one for one in found if side_in(one[1]) == side] or found
    return exact[0] if len({json.dumps(config, sort_keys=True) for _, config in exact}) == 1 else None


def side_of(size: Any) -> int:
    """Of a square image, told as one number or two."""
    return int(size if isinstance(size, int) else size[0])


def side_in(config: dict[str, Any]) -> int | None:
    """Of the images of a model's JSON; None where it leaves them open, by null or []."""
    size = dict(config["vision_cfg"]).get("image_size", 224)
    return side_of(size) if size else None


def _looks_like(config: dict[str, Any], model: Any) -> bool:
    """Whether the numbers of a JSON that are quickly compared are those of a model."""
    vision, text, visual = dict(config["vision_cfg"]), dict(config.get("text_cfg") or {}), model.visual
    if ("hf_model_name" in text) != hasattr(getattr(model, "text", None), "config"):
        return False
    embedding = getattr(getattr(model, "text", model), "token_embedding", None)
    words = (text.get("vocab_size", 49408), text.get("width", 512))
    if embedding is not None and words != tuple(embedding.weight.shape):
        return False
    if isinstance(visual, TimmModel):
        described = getattr(visual.trunk, "pretrained_cfg", None) or {}
        return str(vision.get("timm_model_name", "")).partition(".")[0] == described.get("architecture")
    if "timm_model_name" in vision or isinstance(vision.get("layers"), (list, tuple)):
        return False
    blocks, width = len(visual.transformer.resblocks), visual.transformer.width
    own = (config["embed_dim"], vision.get("layers", 12), vision.get("width", 768), vision.get("patch_size", 16))
    return own == (visual.output_dim, blocks, width, side_of(visual.patch_size))
