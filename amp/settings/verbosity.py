"""The option --verbose: whether a command prints details. It also applies to the processes that the command starts.

Light: it imports no other settings.
"""

import argparse
import os
from typing import Any

_VARIABLE = "AMP_VERBOSE"


def is_verbose() -> bool:
    """Whether details are printed."""
    return os.environ.get(_VARIABLE, "0") not in ("", "0")


class Verbose(argparse.Action):
    """The option --verbose; it adds nothing to the parsed values."""

    def __init__(self, option_strings: list[str], dest: str, **others: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **others)

    def __call__(self, *parsed: Any, **named: Any) -> None:
        os.environ[_VARIABLE] = "1"
