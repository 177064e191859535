"""How the processes of a run meet, and how all end when one has: which one it was and why, as far as it could say."""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed import DistError, init_process_group
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from amp.errors import StoppedError, UserError, as_line, shortened
from amp.run.processes.environment import Place
from amp.run.processes.signals import stopped

JOIN = timedelta(minutes=5)
SECONDS = 3.0
_OF_A_COLLECTIVE = ("/gloo/", "gloo::", "NCCL", "Connection closed by peer", "Connection reset by peer")


class Process(NamedTuple):
    """Where a process of a run lives.

    Attributes:
        machine: that tells its process ids apart from those of others.
    """

    machine: str
    number: int

    @classmethod
    def own(cls) -> "Process":
        """This one."""
        with suppress(OSError):
            return cls(f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}", os.getpid())
        return cls(f"{socket.gethostname()} {os.getpid()}", os.getpid())

    def has_ended(self) -> bool:
        """Whether it is known to have ended; of another machine nothing is known."""
        if self.machine != Process.own().machine:
            return False
        try:
            status = Path("/proc", str(self.number), "stat").read_text()
        except OSError:
            return True
        return status.rpartition(")")[2].split()[0] in ("Z", "X")


class Ends:
    """What the processes of a run tell each other at their ends, in the store where they met.

    Args:
        store: where they met.
        rank: of this process.
        processes: all of them, in rank order.
    """

    def __init__(self, store: Store, rank: int, processes: Sequence[Process]) -> None:
        self._store, self._rank, self._processes = store, rank, processes

    def tell(self, error: BaseException) -> None:
        """Tells the others why this process ends, where they do not meet the same cause."""
        known = as_line(error)
        if known is None or known.rank_local:
            self._write(shortened(known or f"{type(error).__name__}: {error}"))

    def explain(self) -> StoppedError:
        """The end of this process where the work with the others broke off."""
        self._write("")  # This one is no cause.
        until = time.monotonic() + SECONDS
        while not (found := self._find()) and time.monotonic() < until:
            time.sleep(0.1)
        who = f"process {self._rank} of {len(self._processes)}"
        why = found or "another process of the run has ended"
        return StoppedError(stopped(f"{who}: {why}"), rank_local=True)

    def _find(self) -> str:
        told = {rank: self._read(rank) for rank in range(len(self._processes)) if rank != self._rank}
        for rank, text in told.items():
            if text:
                return f"process {rank} has ended ({text})"
        ended = [str(rank) for rank, text in told.items() if text is None and self._processes[rank].has_ended()]
        if len(ended) > 1:
            return f"processes {' and '.join(ended)} have ended"
        silent = " (see its message)" if self._store_is_gone() else " without a message (killed, or out of memory)"
        return f"process {ended[0]} has ended{silent}" if ended else ""

    def _store_is_gone(self) -> bool:
        """With the first process, but where it is torchrun's; asked first, since torch fills the console otherwise."""
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and self._processes[0].has_ended()

    def _write(self, text: str) -> None:
        with suppress(RuntimeError):
            if not self._store_is_gone():
                self._store.set(f"end of {self._rank}", text)

    def _read(self, rank: int) -> str | None:
        with suppress(RuntimeError):
            if not self._store_is_gone() and self._store.check([f"end of {rank}"]):
                return self._store.get(f"end of {rank}").decode(errors="replace")
        return None


def join(place: Place, device: torch.device) -> Store:
    """Meets the others; returns the store where they meet. Raises UserError where they do not come."""
    try:
        store = next(iter(rendezvous("env://", place.rank, place.size, timeout=JOIN)))[0]
        store.set_timeout(JOIN)
        init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(hours=1),
            device_id=device if device.type == "cuda" else None,
        )
    except (DistError, RuntimeError) as error:
        raise UserError(
            "MASTER_ADDR, MASTER_PORT",
            f"process {place.rank} could not connect to the other processes (WORLD_SIZE {place.size}) at "
            f"{place.address}:{place.port} ({shortened(error)})",
            rank_local=True,
        ) from None
    return store


def broke_off(error: BaseException) -> bool:
    """Whether it is a collective's error, which another process's end causes."""
    plain = type(error) is RuntimeError and any(words in str(error) for words in _OF_A_COLLECTIVE)
    return plain or isinstance(error, DistError)
