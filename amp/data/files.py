"""The files below a folder of data: what of it counts, in a fixed order."""

import os
from collections.abc import Iterator
from pathlib import Path

from amp.errors import UserError, one_line

_LITTER = frozenset({"__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini"})


def check_root(root: str | Path, key: str = "data.root") -> None:
    """Raises UserError unless it is a folder."""
    if not Path(root).is_dir():
        raise UserError(key, f"{root}: {'is a file; give its folder' if Path(root).exists() else 'no such folder'}")


def is_litter(name: str) -> bool:
    """Whether a path, relative to the data's root, is what desktops and archivers leave behind: hidden, or in a hidden
    folder (`._a.jpg`, `.DS_Store`, `.ipynb_checkpoints`), or of `__MACOSX`, `Thumbs.db` and their kin."""
    return any(part in _LITTER or part.startswith(".") for part in name.split("/") if part not in ("", ".", ".."))


def walk(folder: str | Path, key: str) -> Iterator[Path]:
    """Files at any depth that are no litter; linked folders too, each folder once, lest links in a circle never end.

    Args:
        key: of the setting or option that named the folder, for messages.
    Raises:
        UserError: a folder cannot be read.
    """

    seen: set[str] = set()
    waiting = [os.fspath(folder)]
    while waiting:
        parent = waiting.pop()
        if (real := os.path.realpath(parent)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(parent) as found:
                entries = sorted((own for own in found if not is_litter(own.name)), key=lambda own: own.name)
            folders = []
            for own in entries:
                if _is_folder(own):
                    folders.append(own.path)
                elif _is_file(own):
                    yield Path(own.path)
        except OSError as error:
            raise UserError(key, f"{error.filename}: cannot be read ({error.strerror})") from None
        waiting += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Only links are asked for: of others the listing of their folder tells, and network file systems answer late."""
    return Path(entry.path).is_file() if entry.is_symlink() else entry.is_file()


def printable(name: object) -> str:
    """A file's name on one line, where it stands in no UserError, which sees to that itself."""
    return one_line(name)
