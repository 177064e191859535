"""What timm reads of a pruned model's folder, and what a sliced model's own record says."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg

from amp.towers.base import Tower, quiet
from amp.towers.library import FOLDER, Files, Native, or_heads, path_of_blocks, resizing, same_shapes

# Of the weights that it was pruned from, or of what the file of weights needed.
DROPPED = {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "custom_load", "architecture", "tag"}
DROPPED |= {"test_input_size", "test_crop_pct", "test_pool_size", "min_input_size", "label_offset", "pool_size"}


def settle(tower: Tower) -> None:
    """What timm remembers of the arguments that built the model says the one width of all blocks, if they have one."""
    said = _said(tower)
    remembered = getattr(tower.model, "_model_args", None)
    if said and remembered is not None:
        remembered |= said


def files(tower: Tower) -> Files:
    """Of one width for all blocks, what `local-dir:` reads of `config.json`; else lines of Python."""
    said = _said(tower)
    images = {key: value for key, value in tower.preprocess.items() if key != "size"}
    size = (3, tower.image_size, tower.image_size)
    low = tower.dtype == torch.bfloat16
    cast = ["model = model.to(torch.bfloat16)"] if low else []
    code = ["import timm", *(["import torch"] if low else [])]
    if said is not None:
        code += ["", f'model = timm.create_model("local-dir:{FOLDER}", pretrained=True)', *cast, "model.eval()"]
        code += [
            "images = timm.data.resolve_model_data_config(model)",
            "transform = timm.data.create_transform(**images)",
        ]
        return Files("timm", "", "\n".join(code), {"config.json": _config(tower, said)})
    arguments = "".join(f", {key}={value!r}" for key, value in _arguments(tower).items())
    code += ["from safetensors.torch import load_file", "from torch import nn", ""]
    code += [f'model = timm.create_model("{tower.base["variant"]}"{arguments})', *cast]
    code += resizing(tower, f"model.{path_of_blocks(tower)}")
    code += [f'model.load_state_dict(load_file("{FOLDER}/model.safetensors"), assign=True)', "model.eval()"]
    code += [f"transform = timm.data.create_transform({size}, **{images})"]
    why = f"Its arguments cannot express these MLP widths{or_heads(tower)}, so this code resizes the dense model:"
    return Files("timm", why, "\n".join(code))


def _arguments(tower: Tower) -> dict[str, Any]:
    model: Any = tower.model
    return {**tower.base["kwargs"], "num_classes": model.num_classes}


def _config(tower: Tower, said: Mapping[str, float]) -> dict[str, Any]:
    """`{architecture, num_classes, model_args, pretrained_cfg}`."""
    model: Any = tower.model
    images, known = tower.preprocess, {key: value for key, value in model.pretrained_cfg.items() if value is not None}
    own = {key: images[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    own |= {"input_size": [3, images["size"], images["size"]], "num_classes": model.num_classes}
    of_images = {key: value for key, value in known.items() if key not in DROPPED} | own
    if model.num_classes != known.get("num_classes"):
        of_images = {key: value for key, value in of_images.items() if not key.startswith("label_")}
    return {
        "architecture": tower.base["variant"].partition(".")[0],
        "num_classes": model.num_classes,
        "model_args": {**_arguments(tower), **said},
        "pretrained_cfg": json.loads(json.dumps(of_images)),
    }


def _said(tower: Tower) -> dict[str, float] | None:
    """The factory's arguments that say the widths; None where none do."""
    return next((own for own in _candidates(tower) if _builds(tower, own)), None)


def _candidates(tower: Tower) -> Iterator[dict[str, float]]:
    if len(set(tower.widths)) > 1:
        return
    yield {}
    (width,), wide = set(tower.widths), tower.slots[0].out_projection.out_features
    pool: Any = getattr(getattr(tower.model, "attn_pool", None), "mlp", None)
    pools = [{"attn_pool_mlp_ratio": ratio_of(pool.fc1.out_features, wide)}] if hasattr(pool, "fc1") else []
    for rows in (width, 2 * width):  # timm counts both rows of some packed gates.
        yield from ({"mlp_ratio": ratio_of(rows, wide), **of_pool} for of_pool in ({}, *pools))


def ratio_of(width: int, wide: int) -> float:
    """A number r for which int(wide * r) is `width`."""
    ratio = width / wide
    return ratio if int(wide * ratio) == width else (width + 0.5) / wide


def _builds(tower: Tower, said: Mapping[str, float]) -> bool:
    """Whether timm builds a model of the tower's shapes from the file."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        Path(folder, "config.json").write_text(json.dumps(_config(tower, said)), encoding="utf-8")
        try:
            with torch.device("meta"):
                return same_shapes(timm.create_model(f"local-dir:{folder}"), tower.model)
        except Exception:  # A model that knows no such argument.
            return False


def origin(base: Mapping[str, Any], pretrained: str | None) -> dict[str, str]:
    """Of a tag's weights; of a file nobody knows."""
    architecture, _, tag = base["variant"].partition(".")
    if not tag or pretrained != tag:
        return {}
    known = get_pretrained_cfg(f"{architecture}.{tag}", allow_unregistered=False)
    own = {"base_model": known.hf_hub_id, "license": known.license}
    return {key: value for key, value in own.items() if value and value != "unknown"}


NATIVE = Native(files, origin, settle)
