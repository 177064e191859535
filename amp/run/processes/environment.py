"""What a launcher tells a process in its environment: which one it is of how many, and where they meet."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from amp.errors import UserError

MOST_PROCESSES = 100_000
LAUNCH = "torchrun sets it; if RANK is not set, a script runs as one process"
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Place:
    """A process among those of its run.

    Attributes:
        rank, size: which one it is, from 0, of how many.
        local_rank, local_size: the same among those of its machine.
        address, port: where they meet.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int


def place_of(environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place; None where it runs alone.

    A machine's own numbers may be missing where all processes run on one machine, or LOCAL_WORLD_SIZE says how many do
    on each.

    Raises:
        UserError: a number is missing, or is none, or cannot be.
    """
    if "RANK" not in environment:
        if _number(environment, "WORLD_SIZE", 1, MOST_PROCESSES, default=1) > 1:
            raise _wrong("RANK", f"missing, but WORLD_SIZE is {environment['WORLD_SIZE']}; torchrun sets both")
        return None
    size = _number(environment, "WORLD_SIZE", 1, MOST_PROCESSES)
    rank = _number(environment, "RANK", 0, size - 1, f" of WORLD_SIZE {size}")
    address = environment.get("MASTER_ADDR", "").strip()
    if not address or not address.isprintable():
        raise _wrong("MASTER_ADDR", f"{address!r} is not a host name or address; {LAUNCH}")
    port = _number(environment, "MASTER_PORT", 1, 65535)
    local_size = _number(environment, "LOCAL_WORLD_SIZE", 1, size, default=size if address in _LOCAL else 0)
    if "LOCAL_RANK" not in environment and not local_size:
        raise _wrong("LOCAL_RANK", f"missing together with LOCAL_WORLD_SIZE, but MASTER_ADDR is {address}; {LAUNCH}")
    local_size = local_size or size
    local_rank = _number(environment, "LOCAL_RANK", 0, local_size - 1, default=rank % local_size)
    return Place(rank, size, local_rank, local_size, address, port)


def speaks() -> bool:
    """Whether this process speaks for the run; one that does not know its place does."""
    try:
        own = place_of()
    except UserError:
        return True
    return own is None or own.rank == 0


def is_one_of_several() -> bool:
    """Whether this process runs beside others."""
    try:
        own = place_of()
    except UserError:
        return False
    return own is not None and own.size > 1


def _number(
    environment: Mapping[str, str], key: str, least: int, most: int, why: str = "", default: int | None = None
) -> int:
    text = environment.get(key)
    if text is None and default is not None:
        return default
    if text is None:
        raise _wrong(key, f"missing; {LAUNCH}")
    text = text.strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise _wrong(key, f"{text!r} is not a number from {least} to {most}{why}; {LAUNCH}")
    return int(text)


def _wrong(key: str, text: str) -> UserError:
    return UserError(key, text, rank_local=True)
