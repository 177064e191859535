"""Ends of a run that need no traceback: the user's mistakes, and stops with work left to do; one line each."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake only the user can mend. Entry scripts print its one line and exit with code 2.

    Args:
        rank_local: whether only this process of the run met it, so that it must speak for itself.
    """

    def __init__(self, message: str, rank_local: bool = False) -> None:
        super().__init__(message)
        self.rank_local = rank_local


class StoppedError(RuntimeError):
    """A run that ends before its work is done, and says how to go on. Entry scripts print its one line.

    Args:
        code: exit code of the script: 1, or 128 + the signal that asked for the stop.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """'; did you mean a, b?' for the known words closest to `word`, or '' when none is close."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.6)
    return f"; did you mean {', '.join(repr(by_lower[c]) for c in close)}?" if close else ""
