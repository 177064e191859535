"""Tensors of a run on the disk, each process its shards: written in a thread while the run goes on, and read."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import new_group
from torch.distributed.checkpoint._state_dict_stager import StateDictStager
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from amp.errors import shortened
from amp.run.processes.together import broke_off
from amp.run.world import world

# safetensors holds Python's lock, and with it the run, while it lays out a file: 0.1 s for this much.
FILE_BYTES = 64 * 2**20


class TensorWriter:
    """Writes tensors as safetensors files in a thread, one folder after another.

    It keeps a copy of the tensors in the host's memory, pinned where they are on a GPU, and uses it again for the next
    folder. Every process of a run makes one at the same moment, and starts its writes after the same steps.
    """

    def __init__(self) -> None:
        cuda = world().device.type == "cuda"
        # Not the public DefaultStager around it, which in torch 2.11 stages only once (pytorch/pytorch issue 183413).
        self._stager = StateDictStager(pin_memory=cuda, share_memory=False)
        self._thread = ThreadPoolExecutor(1, "save", partial(torch.cuda.set_device, world().device) if cuda else None)
        self._is_main, self._alone = world().is_main, world().size == 1
        # Its own, since those of a step go on meanwhile.
        self._group = None if self._alone else new_group(backend="gloo")
        self._written: Future[None] | None = None

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Makes room for the copies of tensors that will be written, which takes longer than to copy them."""
        self._copy(tensors)

    def start(self, tensors: Mapping[str, Tensor], folder: Path, then: Callable[[OSError | None], None]) -> None:
        """Copies the tensors, which may change from then on, and writes them in the thread.

        Args:
            then: called in the thread when all processes' files are on the disk, or with what one of them met.
        """
        assert self._written is None, "one write at a time"
        _ignore_what_is_no_news()
        self._written = self._thread.submit(self._write, self._copy(tensors), folder, then)

    def _copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """On the host; of tensors that every process has, one process keeps a copy."""
        own = {name: tensor for name, tensor in tensors.items() if self._is_main or isinstance(tensor, DTensor)}
        cuda = world().device.type == "cuda"
        copied: dict[str, Tensor] = self._stager.stage(own, non_blocking=cuda)
        if cuda:
            torch.cuda.synchronize(world().device)
        return copied

    def _write(self, tensors: dict[str, Tensor], folder: Path, then: Callable[[OSError | None], None]) -> None:
        writer = HuggingFaceStorageWriter(str(folder), _files_of(tensors), save_distributed=True)
        try:
            with _one_line():
                save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._alone)
        except OSError as error:
            then(error)
        else:
            then(None)

    @property
    def failed(self) -> bool:
        """Whether the write has ended, with an error."""
        return self._written is not None and self._written.done() and self._written.exception() is not None

    def wait(self) -> None:
        """Until the write has ended. Raises what `then` raised."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def close(self) -> None:
        """Waits for the write, whatever came of it, and frees the copies."""
        if self._written is not None:
            wait([self._written])
        self._thread.shutdown()
        self._stager.close()


def load_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fills tensors from what any number of processes wrote. Raises OSError on every process."""
    _ignore_what_is_no_news()
    with _one_line():
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world().size == 1)


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of each tensor's file, from 1 on."""
    numbers, number, used = {}, 1, 0
    for name, tensor in tensors.items():
        if used and used + tensor.nbytes > FILE_BYTES:
            number, used = number + 1, 0
        numbers[name], used = number, used + tensor.nbytes
    return numbers


def _ignore_what_is_no_news() -> None:
    """Of one process. Not for the time of a block alone, since warnings are no thread's own."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


@contextmanager
def _one_line() -> Iterator[None]:
    """What the first process to fail met, instead of every process's traceback."""
    try:
        yield
    except CheckpointException as failure:
        cause, _ = next(iter(failure.failures.values()))
        if broke_off(cause):
            raise cause from None
        raise OSError(getattr(cause, "strerror", None) or shortened(cause)) from None
