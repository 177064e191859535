"""The images of a split, in the layouts that people have them in."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from amp.data.scenes import build_scenes
from amp.data.shards import Member, find_shards, list_members
from amp.errors import UserError
from amp.run.console import say
from amp.settings.data import DataSettings

Split = Literal["train", "val"]


Source = Path | Member


EXTENSIONS = frozenset(Image.registered_extensions())


FOLDERS = {"coco": {"train": "train2017", "val": "val2017"}}


HELD_OUT_EVERY = 4


def list_images(settings: DataSettings, split: Split) -> Sequence[Source]:
    """Images of a split: sorted files, or the members of shards.

    coco: `root/train2017`, `root/val2017`; imagenet1k, imagefolder, digit_scenes: `root/train`, `root/val`, at any
    depth. webdataset: .tar shards in such folders, or of a pattern. An imagefolder or webdataset with neither is
    split: every fourth image, sorted, is held out. Missing digit scenes are built first.
    Raises:
        UserError: the folder is missing or holds no image file.
    """
    root = Path(settings.root)
    if settings.name == "digit_scenes":
        if not root.is_dir():
            say(f"building the digit scenes in {root}")
        build_scenes(root)
    names = FOLDERS.get(settings.name, {"train": "train", "val": "val"})
    may_be_one = settings.name in ("imagefolder", "webdataset")
    if not root.is_dir() and settings.name != "webdataset":
        raise UserError("data.root", f"{root}: no such folder")
    one_folder = may_be_one and not any((root / name).is_dir() for name in names.values())
    folder = root if one_folder else root / names[split]
    if not folder.is_dir() and not one_folder:
        raise UserError("data.root", f"{root}: has no folder {names[split]!r}, which {settings.name} needs")
    paths: Sequence[Source]
    if settings.name == "webdataset":
        paths = list_members(find_shards(str(folder)), EXTENSIONS)
    else:
        paths = sorted(p for p in _files(folder) if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not paths:
        raise UserError("data.root", f"{folder}: holds no image file")
    if one_folder and len(paths) < HELD_OUT_EVERY:
        raise UserError("data.root", f"{root}: {len(paths)} images; to hold out one in {HELD_OUT_EVERY} takes more")
    if not one_folder:
        return paths
    held_out = set(paths[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    return [p for p in paths if (p in held_out) == (split == "val")]


def _files(folder: Path) -> Iterator[Path]:
    """Files at any depth; linked folders too, each folder once, lest links in a circle never end."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in files)
