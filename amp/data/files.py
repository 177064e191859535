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

    def refuse(error: OSError) -> None:
        raise UserError(key, f"{error.filename}: cannot be read ({error.strerror})") from None

    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        try:
            yield from (
                path for name in sorted(files) if not is_litter(name) and (path := Path(parent, name)).is_file()
            )
        except OSError as error:
            refuse(error)


def printable(name: object) -> str:
    """A file's name on one line, where it stands in no UserError, which sees to that itself."""
    return one_line(name)
