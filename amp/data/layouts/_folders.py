"""Images in folders: what several layouts have in common."""

from pathlib import Path

from amp.data.files import check_root
from amp.data.layouts import SPLITS
from amp.data.pixels import image_files
from amp.errors import UserError


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
    paths = sorted(image_files(folder, "data.root"))
    if not paths:
        raise UserError("data.root", f"{folder}: holds no image file")
    return paths


def is_split(root: str) -> bool:
    """Whether `root` has a folder of either split."""
    return any((Path(root) / split).is_dir() for split in SPLITS)
