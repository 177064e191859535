"""EVA-CLIP: EVA01 and EVA02 as open_clip has them, and EVA-CLIP-8B, which neither open_clip nor timm knows.

Feature of the criterion: (B, D), the CLS token after the trunk's `norm`, without head and projection.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from timm.layers import RmsNorm
from timm.models import register_model
from timm.models.eva import Eva
from torch import Tensor

from amp.config import ModelSettings
from amp.errors import UserError
from amp.towers import open_clip
from amp.towers.base import Tower

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


def from_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released file of EVA-CLIP-8B in open_clip's names: the trunk apart from the projection; text as it is."""
    converted = {}
    for name, tensor in state.items():
        if name.startswith("visual.") and not name.startswith(("visual.trunk.", "visual.head.proj.")):
            name = name.replace("visual.", "visual.trunk.", 1).replace("visual.trunk.head.", "visual.head.proj.", 1)
        converted[name] = tensor
    return converted


def build(settings: ModelSettings, device: str, saved: dict[str, Any] | None) -> Tower:
    """A tower of EVA-CLIP; see `amp.towers.build_tower`."""
    if "EVA" not in settings.name.upper():
        raise UserError(f"model.name: {settings.name!r} is no EVA-CLIP; for other CLIPs use the frame open_clip")
    if settings.name != MODEL_8B:
        return open_clip.build(settings, device, saved)
    return open_clip.build(settings, device, saved, json.loads(CONFIG_8B.read_text("utf-8")), from_released)
