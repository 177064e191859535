"""Which library a model's name belongs to, where the user does not say. What each one knows stands in its own file."""

from pathlib import Path

from amp.errors import UserError, nearest
from amp.registry import FRAMES
from amp.settings.model import Frame, ModelSettings
from amp.towers.library import library

DEFAULT: Frame = "open_clip"


def knows(frame: Frame, name: str) -> bool:
    """Whether a library has a model of this name; of a hub id nobody can tell offline."""
    return library(frame).knows(name)


def default_frame(name: str, key: str = "model.name", option: str = "--frame") -> Frame:
    """The frame of a name that is given without one: open_clip.

    Args:
        key: the setting that holds the name, for messages.
        option: the user's option for the frame, for messages.
    Raises:
        UserError: open_clip does not know the name, but others do; or a folder of theirs has the same name.
    """
    known = knows(DEFAULT, name)
    if Path(name).is_dir():
        for frame in (frame for frame in FRAMES.names if library(frame).folders and knows(frame, name)):
            kind = f"a folder of {library(frame).known_as}"
            if not known:
                raise UserError(key, f"{name} is {kind}: use {option} {frame}")
            both = f"{name!r} is a model of {library(DEFAULT).known_as}, and {kind}"
            raise UserError(key, f"{both}: use {option} {DEFAULT} or {option} {frame}")
    if known:
        return DEFAULT
    others = [frame for frame in FRAMES.names if frame != DEFAULT and knows(frame, name)]
    if others:
        who = " and ".join(library(frame).known_as for frame in others)
        say = " or ".join(f"{option} {frame}" for frame in others)
        knowing = "know it" if len(others) > 1 else "knows it"
        raise UserError(
            key, f"{name!r} is not a model of open_clip, the default library, but {who} {knowing}: use {say}"
        )
    if name.count("/") == 1 and not Path(name).exists():
        say = " or ".join(f"{option} {frame}" for frame in FRAMES.names if library(frame).folders)
        raise UserError(key, f"{name!r} is neither a model of open_clip nor a file; if it is a hub id, use {say}")
    return DEFAULT


def find_frame(name: str, option: str = "--frame") -> Frame:
    """The one library that knows the name; open_clip where it is one of several.

    Args:
        option: as of `default_frame`.
    Raises:
        UserError: none does, or several do.
    """
    known = [frame for frame in FRAMES.names if knows(frame, name)]
    if len(known) == 1:
        return known[0]
    if known or Path(name).exists():
        return default_frame(name, option=option)
    prefix = name.partition("/")[0]
    if "/" in name and (hint := nearest(prefix, FRAMES.names)):
        raise UserError("model.name", f"{name}: no library {prefix!r}{hint}")
    if name.count("/") == 1:
        return default_frame(name, option=option)
    names = {own for frame in FRAMES.names if (listed := library(frame).names) for own in listed()}
    told = f"no library knows {name!r}, and it is not an existing folder{nearest(name.partition('.')[0], names)}"
    raise UserError("model.name", told)


def other_reader(frame: Frame, settings: ModelSettings) -> str:
    """What may be said after a refusal of a weights file: which other frame reads files of this model; else nothing."""
    if settings.pretrained is None or not Path(settings.pretrained).is_file():
        return ""
    for other in FRAMES.names:
        files = library(other).own_files
        if files and other != frame and knows(frame, settings.name) and knows(other, settings.name):
            return f"; {files} is read by the frame {other}"
    return ""
