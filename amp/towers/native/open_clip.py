"""What open_clip reads of a pruned model's folder."""

import copy
import json
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg

from amp.towers.base import Tower, quiet
from amp.towers.library import FOLDER, Files, Native, or_heads, path_of_blocks, resizing, same_shapes
from amp.towers.native.timm import ratio_of

CONFIG = "open_clip_config.json"
# Arguments of the factory that the JSON can say, and where.
SAID = {
    "force_image_size": ("vision_cfg", "image_size"),
    "img_size": ("vision_cfg", "image_size"),
    "force_patch_dropout": ("vision_cfg", "patch_dropout"),
    "force_context_length": ("text_cfg", "context_length"),
    "force_quick_gelu": ("", "quick_gelu"),
    "force_custom_text": ("", "custom_text"),
}


def files(tower: Tower, registered: Mapping[str, str] | None = None) -> Files:
    """`open_clip_config.json`, which `local-dir:` reads; where it cannot say the widths, with lines of Python.

    Args:
        registered: by the names of entry points that timm does not have, the Python that makes them known.
    """
    model = tower.base["model_config"]
    said = _config(tower, ratio_of(tower.widths[0], tower.slots[0].out_projection.out_features))
    whole = len(set(tower.widths)) == 1 and "timm_model_name" not in model["vision_cfg"] and _builds(tower, said)
    more = {key: value for key, value in tower.base["kwargs"].items() if key not in SAID}
    if tower.dtype == torch.bfloat16:
        more["precision"] = "bf16"
    more |= {} if whole else {"load_weights": False, "pretrained_text": False}
    arguments = "".join(f", {key}={value!r}" for key, value in more.items())
    prelude = (registered or {}).get(model["vision_cfg"].get("timm_model_name"))
    code = ["import open_clip", *([] if whole else ["from safetensors.torch import load_file", "from torch import nn"])]
    code += ["", *([prelude] if prelude else []), f'folder = "{FOLDER}"']
    code += [f'model = open_clip.create_model(f"local-dir:{{folder}}"{arguments})']
    if not whole:
        code += resizing(tower, f"model.{path_of_blocks(tower)}")
        code += ['model.load_state_dict(load_file(f"{folder}/model.safetensors"), assign=True)']
    code += ["model.eval()"]
    if "crop_pct" not in tower.preprocess:
        code.insert(1, "from open_clip.transform import PreprocessCfg, image_transform_v2")
        code += ["transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)"]
    code += _tokenizer(tower)
    dense = f"Its JSON cannot record these MLP widths{or_heads(tower)}, so this code resizes the dense model:"
    why = "" if whole else dense
    return Files("open_clip", why, "\n".join(code), {CONFIG: said if whole else _config(tower)})


def _tokenizer(tower: Tower) -> list[str]:
    """Of open_clip's own, beside the model; one of the Hub's is found by the model's name."""
    if {"hf_tokenizer_name", "hf_model_name"} & dict(tower.base["model_config"].get("text_cfg") or {}).keys():
        name = tower.base["name"].replace("/", "-")
        return [f'tokenizer = open_clip.get_tokenizer("{name}")'] if name in open_clip.list_models() else []
    return ['tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")']


def _config(tower: Tower, ratio: float | None = None) -> dict[str, Any]:
    """`{model_cfg, preprocess_cfg}`, of the dense model or with another `mlp_ratio`."""
    model = copy.deepcopy(dict(tower.base["model_config"]))
    for key, value in tower.base["kwargs"].items():
        if key in SAID:
            group, name = SAID[key]
            (model[group] if group else model)[name] = value
    if ratio is not None:
        model["vision_cfg"]["mlp_ratio"] = ratio
    known = {one.name for one in fields(PreprocessCfg)}
    return {"model_cfg": model, "preprocess_cfg": {k: v for k, v in tower.preprocess.items() if k in known}}


def _builds(tower: Tower, config: Mapping[str, Any]) -> bool:
    """Whether open_clip builds a model of the tower's shapes from the file."""
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.device("meta"):
        Path(folder, CONFIG).write_text(json.dumps(config), encoding="utf-8")
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, device="meta")
        return same_shapes(model, tower.model)


def origin(base: Mapping[str, Any], pretrained: str | None) -> dict[str, str]:
    """Of a tag's weights; of a file nobody knows."""
    known = open_clip.get_pretrained_cfg(base["name"].replace("/", "-"), pretrained or "")
    hub = known.get("hf_hub", "").strip("/") if known else ""
    return {"base_model": "/".join(hub.split("/")[:2])} if hub else {}


NATIVE = Native(files, origin)
