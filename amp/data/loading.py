"""Batches from worker processes: what they hold open, what they need of shared memory, and what their end means."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from amp.errors import UserError
from amp.run.world import world


def read_batches(
    dataset: Dataset[Any], collate: Callable[[list[Any]], Any], num_workers: int, key: str, **batching: Any
) -> Generator[Any]:
    """What `collate` makes of each batch, in order; a tensor of it, or in a tuple of it, may be kept at no cost but its
    own memory.

    A tensor that comes from a worker lies in shared memory and holds a file open. It is copied out of it, and where
    shared memory is too small (containers often have 64 MB) it comes through a pipe.

    Args:
        num_workers: of this process, at most one a core.
        key: of the setting or option of `num_workers`, for messages.
        batching: as of torch's DataLoader: `batch_sampler`, or `batch_size` of a stream.
    Raises:
        UserError: the workers cannot be started, or one was killed.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        generator=torch.Generator(),  # its own, since the loader draws a seed from the global one
        num_workers=at_work(num_workers),
        collate_fn=_HandOver(collate),
        pin_memory=world().device.type == "cuda",
        worker_init_fn=outlive_signals,
        **batching,
    )
    handler, others = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
    try:
        batches = iter(loader)
    except OSError as error:
        raise UserError(
            key, f"cannot start {num_workers} workers ({error}); with 0 the main process reads the images"
        ) from None
    workers = [child for child in multiprocessing.active_children() if child not in others]
    if workers and _in_main_thread():
        signal.signal(signal.SIGCHLD, handler)  # the loader's own raises in the midst of whatever runs

    def end() -> None:
        for worker in workers:
            worker.kill()  # they outlive the signal by which Python ends its children, and it waits for them

    atexit.register(end)
    try:
        while True:
            with _watched(workers, key):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch.take(copy=bool(workers))
    except UserError:  # one is dead; the others may wait for what it held
        end()
        raise
    finally:
        del batches
        atexit.unregister(end)


def at_work(num_workers: int) -> int:
    """How many of the workers that are asked for read images: at most one a core."""
    return min(num_workers, os.cpu_count() or 1)


def outlive_signals(worker: int) -> None:
    """A queue signals every process of a job; workers end when the process that reads them does."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@dataclass
class _Batch:
    """A collated batch on its way from a worker: its tensors are shared, or arrays that a pipe takes."""

    values: Any

    def pin_memory(self) -> "_Batch":
        return _Batch(_map(lambda tensor: tensor.pin_memory(), self.values))

    def take(self, copy: bool) -> Any:
        """The values, as tensors of this process alone."""
        return _map(lambda t: t.clone() if copy and not t.is_pinned() else t, _map(_from_pipe, self.values, _Piped))


@dataclass
class _Piped:
    array: np.ndarray


@dataclass
class _HandOver:
    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> _Batch:
        values = self.collate(items)
        return _Batch(values if get_worker_info() is None else _map(_share, values))


def _share(tensor: Tensor) -> Tensor | _Piped:
    try:
        return tensor.share_memory_()
    except RuntimeError:  # shared memory is full; left to the queue, the batch would be lost, and waited for
        return _Piped(tensor.numpy())


def _from_pipe(piped: _Piped) -> Tensor:
    return torch.from_numpy(piped.array)


def _map(function: Callable[[Any], Any], values: Any, kind: type = Tensor) -> Any:
    if type(values) is tuple:
        return tuple(function(value) if isinstance(value, kind) else value for value in values)
    return function(values) if isinstance(values, kind) else values


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _watched(workers: list[Any], key: str) -> Iterator[None]:
    """Around the wait for a batch: a worker that is killed ends it, whatever it held."""

    def check(*_: Any) -> None:
        for worker in workers:
            if worker.exitcode:
                how = f"signal {-worker.exitcode}" if worker.exitcode < 0 else f"exit code {worker.exitcode}"
                raise UserError(
                    key,
                    f"a worker that reads images was killed ({how}), most often because memory ran out; "
                    "use fewer workers, down to 0, or a smaller batch size",
                    rank_local=True,
                ) from None

    if not workers or not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, check)
    try:
        check()
        yield
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):
            check()
        raise
    finally:
        signal.signal(signal.SIGCHLD, before)
