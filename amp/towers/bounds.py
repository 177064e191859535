"""What a user's file may ask of a library: known keys, values of their types, numbers within bounds."""

import dataclasses
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amp.errors import UserError, nearest, under
from amp.run import sealed
from amp.settings import base


def read_json(path: str, key: str) -> dict[str, Any]:
    """A JSON file of one object. Raises UserError under `key`."""
    with under(key):
        return sealed.read_json(Path(path))


def check_numbers(key: str, where: str, values: Any) -> None:
    """`amp.settings.base.check_numbers` of a file of the user's.

    Args:
        key: the setting that names it.
        where: put before the names of its values, in messages.
    Raises:
        UserError: as that one raises ValueError.
    """
    try:
        base.check_numbers(values)
    except ValueError as error:
        raise UserError(key, f"{where}{error}") from None


def check_clip(key: str, where: str, config: Mapping[str, Any]) -> None:
    """Raises UserError where open_clip could not build a model JSON: unknown keys, wrong types, odd numbers."""
    from open_clip import CLIP, CoCa, CustomTextCLIP
    from open_clip.coca_model import MultimodalCfg
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    top = {name for kind in (CLIP, CustomTextCLIP, CoCa) for name in inspect.signature(kind).parameters}
    _check_keys(key, where, "", config, (top | {"custom_text"}) - {"cast_dtype"})
    check_numbers(key, where, config)
    parts = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
    for part, kind in parts.items():
        if part in config or part != "multimodal_cfg":
            own = config.get(part)
            if not isinstance(own, Mapping):
                found = json.dumps(own) if part in config else "missing"
                raise UserError(key, f"{where}{part}: {found}; expected an object {{...}}")
            fields = {field.name: field for field in dataclasses.fields(kind)}
            _check_keys(key, where, f"{part}.", own, fields)
            for name, value in own.items():
                _check_value(key, f"{where}{part}.{name}", value, fields[name])
    for name in ("quick_gelu", "custom_text", "nonscalar_logit_scale", "output_dict"):
        if config.get(name, False) not in (True, False):
            raise UserError(key, f"{where}{name}: {config[name]!r}; expected true or false")
    vision = CLIPVisionCfg(**config["vision_cfg"])
    native = vision.timm_model_name is None and isinstance(vision.layers, int)
    if native and vision.width % vision.head_width:
        asked = f"vision_cfg.width: {vision.width} is not a multiple of vision_cfg.head_width: {vision.head_width}"
        raise UserError(key, f"{where}{asked}")
    size = config.get("embed_dim")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(key, f"{where}embed_dim: {size!r}; expected a whole number, 1 or more")


def _check_keys(key: str, where: str, part: str, values: Iterable[str], known: Iterable[str]) -> None:
    for name in values:
        if name not in known:
            raise UserError(key, f"{where}{part}{name}: not a setting of open_clip{nearest(name, known)}")


def _check_value(key: str, name: str, value: Any, field: dataclasses.Field[Any]) -> None:
    """Of the kind that the field's default, or where that is None its type, says."""
    default, declared = field.default, str(field.type)
    if value is None:
        return  # What the library makes of it, it says itself.
    if isinstance(default, bool):
        if value not in (0, 1):
            raise UserError(key, f"{name}: {value!r}; expected true or false")
    elif isinstance(default, (int, float)) or "float" in declared:
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers):
            raise UserError(key, f"{name}: {value!r}; expected a number")
        if isinstance(default, int) and not all(isinstance(number, int) or "mlp_ratio" in name for number in numbers):
            raise UserError(key, f"{name}: {value!r}; expected a whole number")
        smallest: float = 1 if isinstance(default, int) and not name.endswith("_id") else 0
        if "mlp_ratio" in name:
            smallest = 1e-3
        if any(number < smallest for number in numbers):
            raise UserError(key, f"{name}: {value!r}; expected at least {smallest:g}")
    elif "dict" in declared:
        if not isinstance(value, Mapping):
            raise UserError(key, f"{name}: {value!r}; expected an object {{...}}")
    elif not isinstance(value, str):
        raise UserError(key, f"{name}: {value!r}; expected a string")
