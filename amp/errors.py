"""Ends of a run that need no traceback: the user's mistakes, and stops with work left to do; one line each."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike


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
        return f"{self.key}: {self.text}"


class StoppedError(RuntimeError):
    """A run that ends before its work is done, and says how to go on. Entry scripts print its one line.

    Args:
        code: exit code of the script: 1, or 128 + the signal that asked for the stop.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message, code)
        self.message, self.code = message, code

    def __str__(self) -> str:
        return self.message


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


def several(errors: Sequence[UserError]) -> UserError:
    """All of them in one line."""
    first, *others = errors
    return UserError(first.key, "; ".join([first.text, *map(str, others)]), first.rank_local)


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """'; did you mean a, b?' for the known words closest to `word`, or '' when none is close."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.6)
    return f"; did you mean {', '.join(repr(by_lower[c]) for c in close)}?" if close else ""
