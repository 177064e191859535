"""Other libraries and other methods that a comparison sets beside this project, one file each.

`peers.NAME.method` of the settings is a file's stem. The file holds

    NEEDS                              what has to be installed: {what is imported: what pip calls it}; {} where the
                                       method is written here
    prune(trial, settings, size)       a `studies.compare.Trial`, `amp.settings.compare.PeerSettings` and the share of
                                       the tower's parameters to keep -> the pruned `amp.towers.Tower`, a new one

A library is run through its own public interface. It sees the trial's images, without labels, and nothing of the test.
What it raises becomes the reason that stands in the table in the place of numbers.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amp.errors import UserError, nearest
from amp.registry import Registry

METHODS = Registry("studies.methods", Path(__file__).parent)


def check_method(key: str, name: str) -> None:
    """Raises UserError of the setting `key` unless there is a method of that name."""
    if name not in METHODS.names:
        raise UserError(key, f"no {name!r}{nearest(name, METHODS.names)} (known: {', '.join(METHODS.names)})")


def load_method(name: str) -> Any:
    """The module of a method. Raises UserError where what it needs is not installed."""
    method = METHODS.load(name)
    if lacking := [pip for package, pip in method.NEEDS.items() if find_spec(package) is None]:
        raise UserError("needs", f"pip install {' '.join(lacking)}, or this project's extra [peers]")
    return method
