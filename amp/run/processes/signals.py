"""Stops: what the last line says, and those that are asked for from outside, obeyed between two steps."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

INSIST_SECONDS = 5.0


STOPS = (signal.SIGTERM, signal.SIGINT)


_continues: list[str] = []


def continues(so: bool = True) -> None:
    """Whether from now on the same command continues the run if it is stopped; then its last line says so."""
    _continues[:] = ["run the same command to continue from what is saved"] if so else []


def stopped(why: str) -> str:
    """The last line of a run that is stopped."""
    return "; ".join([why, *_continues])


@dataclass
class StopRequest:
    """Whether a queue (SIGTERM) or Ctrl-C (SIGINT) has asked this process to stop."""

    number: int = 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block SIGTERM and SIGINT are noted, to be obeyed between two steps; a later Ctrl-C stops at once."""
    request, noted = StopRequest(), 0.0

    def note(number: int, frame: Any) -> None:
        nonlocal noted
        # torchrun sends the same signal once more; people wait before they insist.
        if number == signal.SIGINT and request.number and time.monotonic() - noted > INSIST_SECONDS:
            raise KeyboardInterrupt
        request.number, noted = request.number or number, noted or time.monotonic()

    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
