"""Which library a model's name belongs to, where the user does not say. A library is imported when it is asked for."""

import json
from pathlib import Path

from amp.errors import UserError
from amp.settings.model import Frame, ModelSettings

KNOWN_AS: dict[Frame, str] = {"eva_clip": "eva_clip", "dinov2": "dinov2 (Meta's files)", "timm": "timm"}


def knows(frame: Frame, name: str) -> bool:
    """Whether a frame has a model of this name; of a hub id nobody can tell offline."""
    if frame == "hf":
        return _is_transformers_folder(name)
    if frame in ("timm", "dinov2"):
        import timm

        return timm.is_model(name) and (frame == "timm" or "dinov" in name)
    import open_clip

    if frame == "eva_clip" and name == "EVA-CLIP-8B":
        return True
    known = name.endswith(".json") or open_clip.get_model_config(name.replace("/", "-")) is not None
    return known and (frame == "open_clip" or "EVA" in name.upper())


def default_frame(name: str, key: str = "model.name", option: str = "--frame") -> Frame:
    """The frame of a name that is given without one: open_clip.

    Args:
        key: the setting that holds the name, for messages.
        option: the user's option for the frame, for messages.
    Raises:
        UserError: open_clip does not know the name, but others do; or a folder of transformers has the same name.
    """
    folder, open_clips = knows("hf", name), knows("open_clip", name)
    if folder and open_clips:
        raise UserError(
            key,
            f"{name!r} is a model of open_clip, and a folder of transformers: say {option} open_clip or {option} hf",
        )
    if folder:
        raise UserError(key, f"{name} is a folder of transformers: say {option} hf")
    others: list[Frame] = [] if open_clips else [frame for frame in KNOWN_AS if knows(frame, name)]
    if others:
        who = " and ".join(KNOWN_AS[frame] for frame in others)
        say = " or ".join(f"{option} {frame}" for frame in others)
        knowing = "know it" if len(others) > 1 else "knows it"
        raise UserError(key, f"{name!r} is no name of open_clip, the default frame; {who} {knowing}: say {say}")
    if not open_clips and name.count("/") == 1 and not Path(name).exists():
        raise UserError(key, f"{name!r} is no name of open_clip, nor a file; if it is a hub id, say {option} hf")
    return "open_clip"


def other_reader(frame: Frame, settings: ModelSettings) -> str:
    """What may be said after a refusal of a weights file: which other frame reads files of this model; else nothing."""
    file = settings.pretrained is not None and Path(settings.pretrained).is_file()
    if file and frame == "open_clip" and knows("eva_clip", settings.name):
        return "; a file that the EVA repository released is read by the frame eva_clip"
    return ""


def _is_transformers_folder(name: str) -> bool:
    try:
        return "model_type" in json.loads((Path(name) / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False
