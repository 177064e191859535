"""EVA01 and EVA02 CLIP models of open_clip, and EVA-CLIP-8B, which neither open_clip nor timm contains.

Weights: open_clip's tags and files, or the files that the EVA repository released.

Feature of the criterion: (B, D), the CLS token after the trunk's `norm`, without head and projection.
"""

import inspect
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from timm.layers import RmsNorm
from timm.models import register_model
from timm.models.eva import Eva, checkpoint_filter_fn

from amp.errors import UserError
from amp.settings.model import ModelSettings
from amp.towers.base import Tower, check_weights
from amp.towers.frames import open_clip as open_clip_frame
from amp.towers.library import Library
from amp.towers.native.open_clip import NATIVE, files
from amp.towers.weights import State

MODEL_8B = "EVA-CLIP-8B"
CONFIG_8B = Path(__file__).parents[2] / "configs" / "models" / f"{MODEL_8B}.json"


def eva_clip_8b_patch14_224(pretrained: bool = False, **kwargs: Any) -> Eva:
    """The vision tower of EVA-CLIP-8B: 32 blocks of width 4096 with plain MLPs of 20480, RMS norms, no rotary."""
    size = {"img_size": 224, "patch_size": 14, "embed_dim": 4096, "depth": 32, "num_heads": 32, "mlp_ratio": 5}
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith(("pretrained", "cache_dir"))}
    norm = partial(RmsNorm, eps=1e-6)
    model = Eva(**{**size, "qkv_bias": False, "norm_layer": norm, "global_pool": "token", **kwargs})
    model.pretrained_cfg = model.default_cfg = {"input_size": (3, 224, 224), "num_classes": 0, "pool_size": None}
    return model


register_model(eva_clip_8b_patch14_224)
# By its name, the Python that makes it known to timm.
REGISTERED = {
    "eva_clip_8b_patch14_224": f"""from functools import partial
from typing import Any

from timm.layers import RmsNorm
from timm.models import register_model
from timm.models.eva import Eva


{inspect.getsource(eva_clip_8b_patch14_224)}

register_model(eva_clip_8b_patch14_224)
"""
}


def from_released(trunk: Any, state: State) -> State:
    """A file of the EVA repository in open_clip's names; one in open_clip's names stays as it is.

    timm knows the names of the blocks; text towers and the logit scale have the same names in both.

    Args:
        trunk: the timm model of the vision tower; with its own head (EVA02), or without (8B, whose head open_clip has).
        state: `visual.blocks.0.attn.q_bias`, ..., `visual.head.weight`, `text.*`, `logit_scale`.
    """
    converted = {k: v for k, v in state.items() if not k.startswith("visual.") or k.startswith("visual.head.proj.")}
    own_head = hasattr(trunk.head, "weight")
    for name, tensor in checkpoint_filter_fn(state, trunk).items():
        projection = name.startswith("head.") and not own_head
        converted[f"visual.head.proj.{name.removeprefix('head.')}" if projection else f"visual.trunk.{name}"] = tensor
    return converted


def build(settings: ModelSettings, device: str, saved: dict[str, Any] | None) -> Tower:
    """A tower of EVA-CLIP; see `amp.towers.build_tower`."""
    _check_name(settings.name)
    config = json.loads(CONFIG_8B.read_text("utf-8")) if settings.name == MODEL_8B else None
    if saved or device == "meta" or not Path(settings.pretrained or "").is_file():
        return open_clip_frame.build(settings, device, saved, config)
    trunk = getattr(open_clip_frame.build(settings, "meta", None, config).visual, "trunk", None)
    return open_clip_frame.build(settings, device, saved, config, partial(from_released, trunk) if trunk else None)


def check(settings: ModelSettings) -> None:
    """As of `Library`."""
    _check_name(settings.name)
    if settings.name == MODEL_8B:
        check_weights(settings, [])
    else:
        open_clip_frame.check(settings)


def _check_name(name: str) -> None:
    if not _is_eva(name):
        raise UserError("model.name", f"{name!r} is not an EVA-CLIP; for other CLIPs use the frame open_clip")


def knows(name: str) -> bool:
    """Whether it is an EVA-CLIP of open_clip, or EVA-CLIP-8B."""
    return name == MODEL_8B or (open_clip_frame.knows(name) and _is_eva(name))


def _is_eva(name: str) -> bool:
    return "EVA" in name.upper()


LIBRARY = Library(
    known_as="eva_clip",
    knows=knows,
    build=build,
    check=check,
    tags=open_clip.list_pretrained_tags_by_model,
    families=[("EVA02-CLIP-E, EVA-CLIP-8B", "plain", MODEL_8B)],
    native=replace(NATIVE, files=partial(files, registered=REGISTERED)),
    names=lambda: [*filter(_is_eva, open_clip.list_models()), MODEL_8B],
    own_files="a file that the EVA repository released",
)
