"""Folders of images, and class folders on disk: how they are divided into images to learn from and images to test on.

    DIR/CLASS/...                         one folder of classes
    DIR/train/CLASS/..., DIR/val/CLASS/...    divided; test/ stands in for val/ where that is missing

Light to import: a mistake in a folder answers before torch is loaded.
"""

from collections.abc import Iterator
from pathlib import Path

from amp.data.files import check_root, is_litter
from amp.errors import UserError

HELD_OUT_EVERY = 4
_TO_TEST = ("val", "test", "train")  # the first one there


def images_below(option: str, root: str | Path) -> Iterator[str]:
    """The image files of a folder at any depth. Raises UserError where a folder cannot be read."""
    from amp.data.pixels import image_files

    return map(str, image_files(root, option))


def check_holds_image(option: str, root: str) -> None:
    """Raises UserError, with the option that named `root`, unless it is a folder with an image file below it."""
    check_root(root, option)
    if next(images_below(option, root), None) is None:
        raise UserError(option, f"{root}: holds no image file")


def class_names(option: str, root: str | Path) -> list[str]:
    """The sorted names of the class folders of `root`, which its images' labels count.

    Args:
        option: that named `root`, for messages.
    Raises:
        UserError: there is no such folder, it cannot be read, or it holds no folder.
    """
    check_root(root, option)
    try:
        names = _folders(root)
    except OSError as error:
        raise UserError(option, f"{root}: cannot be read ({error.strerror})") from None
    if not names:
        raise UserError(option, f"{root}: holds no class folder")
    return names


def is_divided(root: str | Path) -> bool:
    """Whether `root` holds train/ beside val/ or test/, or no folders but those."""
    names = set(_folders(root)) if Path(root).is_dir() else set()
    return bool(names) and (("train" in names and bool(names & {"val", "test"})) or names <= set(_TO_TEST))


def folder_to_test(root: str | Path) -> str:
    """The folder of the class folders to test on: val/ of a divided `root`, else its test/ or train/; else `root`."""
    if not is_divided(root):
        return str(root)
    return next(str(Path(root) / name) for name in _TO_TEST if (Path(root) / name).is_dir())


def _folders(root: str | Path) -> list[str]:
    return sorted(path.name for path in Path(root).iterdir() if path.is_dir() and not is_litter(path.name))


def some(names: list[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
