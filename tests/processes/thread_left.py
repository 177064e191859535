"""Ends as a script of two processes does, while a thread of gloo waits for the interpreter; for tests.

    RANK=1 WORLD_SIZE=2 ... python tests/processes/thread_left.py FOLDER

The thread holds a tensor of Python in a collective that the other process leaves. It is held up where it would let go
of it: from the exit functions on until the interpreter, taken apart, lets threads run again, which would abort it.
"""

import atexit
import ctypes
import os
import sys
import time
from pathlib import Path

HOLDING = ctypes.PyDLL(None)  # Its functions keep the interpreter to this thread.
gone = Path(sys.argv[1]) / "gone"


def hold() -> None:
    """The last exit function: the first that is registered."""
    sys.setswitchinterval(1000)
    for _ in range(200):
        HOLDING.usleep(100_000)
        if HOLDING.access(os.fsencode(gone), os.F_OK) == 0:
            break
    HOLDING.usleep(500_000)


class Late:
    """Is gone when the interpreter is taken apart, and lets other threads run then."""

    def __del__(self, sleep=time.sleep) -> None:  # type: ignore[no-untyped-def]
        sleep(1)


def main() -> None:
    """Of both processes."""
    place = place_of()
    assert place is not None
    join(place, torch.device("cpu"))
    if place.rank == 0:
        time.sleep(0.5)
        gone.touch()
        os._exit(0)
    work = torch.distributed.all_reduce(torch.ones(3), async_op=True)
    del work
    print("written")
    atexit.register(print, "exit functions have run")


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        atexit.register(hold)
    import torch

    from amp.run.console import run_script
    from amp.run.processes.environment import place_of
    from amp.run.processes.together import join

    late = Late()
    run_script(main)
