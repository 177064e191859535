"""Runs a script one of whose processes ends when it calls a function for the given time; for tests.

    python tests/processes/ended_at.py MODULE:NAME NUMBER RANK kill|terminate|interrupt|raise|refuse SCRIPT WORDS...

A queue terminates one process (SIGTERM); Ctrl-C interrupts it and all that it has started (SIGINT).
"""

import os
import runpy
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def end_at(place: str, number: int, how: str) -> None:
    """Patches the function, or a class's method."""
    from amp.errors import UserError

    module, _, dotted = place.partition(":")
    *parents, name = dotted.split(".")
    owner: Any = import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), []

    def call_or_end(*inputs: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == number and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(calls) == number and how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        elif len(calls) == number and how == "interrupt":
            os.killpg(0, signal.SIGINT)
        elif len(calls) == number and how == "refuse":
            raise UserError("data.root", "an image of this process alone is broken", rank_local=True)
        elif len(calls) == number:
            raise KeyError("a fault of the program")
        return original(*inputs, **named)

    setattr(owner, name, call_or_end)


if __name__ == "__main__":
    place, number, rank, how, *sys.argv = sys.argv[1:]
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if os.environ.get("RANK", "0") == rank:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background are started without one
        end_at(place, int(number), how)
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
