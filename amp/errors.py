"""Ends of a run that need no traceback: the user's mistakes, and stops with work left to do; one line each."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib.util import find_spec
from os import PathLike

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory")
GOES_ON = "then run the same command to continue"


class UserError(ValueError):
    """A mistake only the user can mend. Entry scripts print its one line, `key: text`, and exit with code 2.

    Args:
        key: the setting, option or file that holds the mistake.
        text: what is wrong, what is allowed, and the way out.
        rank_local: whether only this process of the run met it, so that it must speak for itself.
    """

    def __init__(self, key: str | PathLike[str], text: str, rank_local: bool = False) -> None:
        super().__init__(str(key), text, rank_local)
        self.key, self.text, self.rank_local = str(key), text, rank_local

    def __str__(self) -> str:
        return one_line(f"{self.key}: {self.text}")


class StoppedError(RuntimeError):
    """A run that ends before its work is done, and says how to go on. Entry scripts print its one line.

    Args:
        code: exit code of the script: 1, or 128 + the signal that asked for the stop.
        rank_local: whether only this process of the run met it, so that it must speak for itself.
    """

    def __init__(self, message: str, code: int = 1, rank_local: bool = False) -> None:
        super().__init__(message, code, rank_local)
        self.message, self.code, self.rank_local = message, code, rank_local

    def __str__(self) -> str:
        return one_line(self.message)


def one_line(text: object) -> str:
    """The text with its line ends, control characters and bytes that are none as Python writes them: a file's name may
    hold some."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))


def shortened(text: object, limit: int = 200) -> str:
    """The text on one line, its whitespace collapsed, cut between two words where it is longer than `limit`."""
    words = str(text).split()
    whole = one_line(" ".join(words))
    if len(whole) <= limit:
        return whole
    cut = whole[:limit].rpartition(" ")[0] or words[0]
    return f"{cut[: 5 * limit].rstrip(' ,;:')} ..."


def as_line(error: BaseException, path: str | PathLike[str] | None = None) -> UserError | StoppedError | None:
    """What a user can mend outside of the program, as the one line that says so: full disks, files that cannot be
    read or written, too little memory. None for everything else, which is a fault of the program.

    Args:
        path: what was being written, where the error does not say.
    """
    if isinstance(error, (UserError, StoppedError)):
        return error
    number, file = _number_of(error), path or getattr(error, "filename", None)
    if _is_out_of_memory(error):
        told = shortened(error) or type(error).__name__
        return StoppedError(f"out of memory ({told}); use a smaller batch", 1, True)
    if number is None:
        return None
    reason = os.strerror(number)
    if number in _NO_ROOM:
        return StoppedError(f"{file or 'a file'} cannot be written ({reason}); free disk space, {GOES_ON}", 1, True)
    if number in (errno.EMFILE, errno.ENFILE):
        return StoppedError(f"{file or 'a file'} cannot be opened ({reason}); raise `ulimit -n`, {GOES_ON}", 1, True)
    if path is not None:
        return StoppedError(f"{path} cannot be written ({reason})", 1, True)
    return UserError(f"{file}", f"{reason[0].lower()}{reason[1:]}", rank_local=True) if file else None


def _number_of(error: BaseException) -> int | None:
    """The number of the system's error behind it; safetensors and torch.save say it in their words."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ == "SafetensorError" and (found := _OS_ERROR.search(str(error))):
        return int(found[1])
    return errno.ENOSPC if "PytorchStreamWriter failed writing file" in str(error) else None


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # not imported for it
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or (isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in _NO_MEMORY))
    )


@contextmanager
def under(place: str | PathLike[str], instead_of: str | None = None) -> Iterator[None]:
    """Says where the keys of the UserErrors raised inside belong: `with under("out/pruned/config.json"): ...`.

    Args:
        place: put before a key, as the file that holds it.
        instead_of: a key, or the first part of keys, that `place` stands for: what the settings call `model` is, inside
            `under("teacher", instead_of="model")`, the teacher. Errors with other keys pass as they are.
    """
    try:
        yield
    except UserError as error:
        if instead_of is None:
            key = f"{place}: {error.key}"
        elif error.key == instead_of or error.key.startswith(f"{instead_of}."):
            key = f"{place}{error.key.removeprefix(instead_of)}"
        else:
            raise
        raise UserError(key, error.text, error.rank_local) from None


def check_extra(key: str, what: str, extra: str, *packages: str) -> None:
    """Raises UserError of `key` where `what` needs packages that only an extra of this project installs."""
    if missing := [package for package in packages if find_spec(package) is None]:
        names = " ".join(missing)
        raise UserError(
            key, f"{what}: needs {names}; run pip install {names}, or install this project's extra [{extra}]"
        )


def several(errors: Sequence[UserError]) -> UserError:
    """All of them in one line."""
    first, *others = errors
    return UserError(first.key, joined(first.text, *map(str, others)), first.rank_local)


def joined(*parts: str) -> str:
    """Parts of a message with a semicolon between them, but after a question."""
    return reduce(lambda text, part: f"{text}{'' if text.endswith('?') else ';'} {part}", parts)


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """'; did you mean a, b?' for the known words closest to `word`, or '' when none is close."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.6)
    return f"; did you mean {', '.join(repr(by_lower[c]) for c in close)}?" if close else ""
