"""Runs a script whose last process is killed (SIGKILL) when it calls a method for the given time; for tests.

torchrun --nproc_per_node=2 tests/processes/killed_at.py MODULE.CLASS.METHOD NUMBER SCRIPT WORDS...
"""

import os
import runpy
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def kill_at(dotted: str, number: int) -> None:
    """Patches the method."""
    module, name, method = dotted.rsplit(".", 2)
    owner = getattr(import_module(module), name)
    original, calls = getattr(owner, method), []

    def call_or_die(*inputs: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == number and os.environ["RANK"] != "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*inputs, **named)

    setattr(owner, method, call_or_die)


if __name__ == "__main__":
    dotted, number, *sys.argv = sys.argv[1:]
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    kill_at(dotted, int(number))
    runpy.run_path(sys.argv[0], run_name="__main__")
