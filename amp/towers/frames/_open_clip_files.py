"""What open_clip reads of a pruned model's folder."""

import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import getsource
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg

from amp.towers.base import Tower, quiet
from amp.towers.frames._timm_files import ratio_of
from amp.towers.library import FOLDER, Files, path_of_blocks, resizing, same_shapes

CONFIG = "open_clip_config.json"
# Arguments of the factory that the JSON can say, and where.
SAID = {
    "force_image_size": ("vision_cfg", "image_size"),
    "img_size": ("vision_cfg", "image_size"),
    "force_patch_dropout": ("vision_cfg", "patch_dropout"),
    "force_context_length": ("text_cfg", "context_length"),
    "force_quick_gelu": ("quick_gelu",),
    "force_custom_text": ("custom_text",),
}


def native(tower: Tower, registered: Mapping[str, Callable[..., Any]] | None = None, imports: str = "") -> Files:
    """The files of a tower: `local-dir:` reads the JSON; where it cannot say the widths, with lines of Python.

    Args:
        registered: entry points of timm that open_clip needs and timm does not have, by name.
        imports: that their source needs.
    """
    said = _config(tower, with_width=True)
    whole = said is not None and _builds(tower, said)
    own = {CONFIG: said if whole and said is not None else _config(tower, with_width=False)}
    trunk = tower.base["model_config"]["vision_cfg"].get("timm_model_name")
    prelude = (
        [f"{imports}\n{getsource(registered[trunk])}\n\nregister_model({trunk})\n"]
        if registered and trunk in registered
        else []
    )
    more = {key: value for key, value in tower.base["kwargs"].items() if key not in SAID}
    more |= {"precision": "bf16"} if tower.dtype == torch.bfloat16 else {}
    arguments = "".join(f", {key}={value!r}" for key, value in more.items())
    code = ["import open_clip", *([] if whole else ["from safetensors.torch import load_file", "from torch import nn"])]
    code += ["", *prelude, f'folder = "{FOLDER}"']
    if whole:
        code += [f'model = open_clip.create_model(f"local-dir:{{folder}}"{arguments})']
    else:
        code += [
            f'model = open_clip.create_model(f"local-dir:{{folder}}", load_weights=False, pretrained_text=False{arguments})'
        ]
        code += resizing(tower, f"model.{path_of_blocks(tower)}", str(tower.widths))
        code += ['model.load_state_dict(load_file(f"{folder}/model.safetensors"), assign=True)']
    code.append("model.eval()")
    if "crop_pct" not in tower.preprocess:
        code.append(
            "transform = open_clip.image_transform_v2(open_clip.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)"
        )
    why = (
        "Nothing else is needed:"
        if whole
        else (
            "open_clip's JSON cannot say the widths of these MLPs, so the dense model is resized before the weights are read:"
        )
    )
    return Files("open_clip", [(why, "\n".join(code))], own)


def _config(tower: Tower, with_width: bool) -> dict[str, Any] | None:
    """`{model_cfg, preprocess_cfg}`; None where the JSON cannot say the width."""
    model = copy.deepcopy(dict(tower.base["model_config"]))
    for key, value in tower.base["kwargs"].items():
        *group, name = SAID.get(key, ("",))
        if name:
            (model[group[0]] if group else model)[name] = value
    if with_width:
        if len(set(tower.widths)) > 1 or "timm_model_name" in model["vision_cfg"]:
            return None
        model["vision_cfg"]["mlp_ratio"] = ratio_of(tower.widths[0], tower.slots[0].out_projection.out_features)
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
