"""Images in folders: what several layouts have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from amp.data.files import check_root, walk
from amp.data.layouts import Source, Split
from amp.data.pixels import EXTENSIONS
from amp.errors import UserError

HELD_OUT_EVERY = 4

Image = TypeVar("Image", bound=Source)


def images_in(root: str, folder: str, layout: str) -> list[Path]:
    """Image files of a folder of `root` that the layout needs, at any depth, sorted. Raises UserError."""
    check_root(root)
    return images_below(folder_in(root, folder, layout))


def folder_in(root: str, folder: str, layout: str) -> Path:
    """A folder of `root`. Raises UserError where it is missing."""
    path = Path(root) / folder
    if not path.is_dir():
        raise UserError("data.root", f"{root}: has no folder {folder!r}, which {layout} needs")
    return path


def images_below(folder: Path) -> list[Path]:
    """Image files of a folder, at any depth, sorted. Raises UserError where there is none."""
    paths = sorted(p for p in walk(folder, "data.root") if p.suffix.lower() in EXTENSIONS)
    if not paths:
        raise UserError("data.root", f"{folder}: holds no image file")
    return paths


def is_split(root: str) -> bool:
    """Whether `root` has a folder of either split."""
    return any((Path(root) / split).is_dir() for split in ("train", "val"))


def part(images: Sequence[Image], split: Split, root: str) -> list[Image]:
    """Of images without a split: every fourth one is held out as `val`. Raises UserError for fewer than four."""
    if len(images) < HELD_OUT_EVERY:
        raise UserError(
            "data.root",
            f"{root}: {len(images)} images; at least {HELD_OUT_EVERY} are needed, because one in {HELD_OUT_EVERY} "
            "is held out",
        )
    held_out = set(images[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    return [image for image in images if (image in held_out) == (split == "val")]
