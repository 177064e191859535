"""The user's mistakes: one line that says what is wrong, where, and what is allowed."""

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


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """'; did you mean a, b?' for the known words closest to `word`, or '' when none is close."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.6)
    return f"; did you mean {', '.join(repr(by_lower[c]) for c in close)}?" if close else ""
