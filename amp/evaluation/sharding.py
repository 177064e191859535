"""A dataset's batches, shared out over the processes, and what was computed of them in the order of one process.

The batches are those of one global list, whatever the number of processes: process r takes the batches r, r + W, ...
and pads none. What is computed of a batch, and so every number, is therefore the same on any number of processes.

Shapes: B items of a batch; W processes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from amp.data.loading import read_batches
from amp.errors import UserError
from amp.run.console import progress
from amp.run.world import world

Value = TypeVar("Value")


@dataclass(frozen=True)
class ShardedBatches:
    """The batches of this process.

    Attributes:
        batch_size: items in one batch, on one process.
        num_workers: loader workers per process, at most one a core.
        in_step: whether every process gets as many batches, as a tower in shards needs it: the last ones of a list take
            a batch of another process once more, which counts once.
    """

    batch_size: int
    num_workers: int
    in_step: bool = False

    def batches(
        self, dataset: Any, collate: Callable[[list[Any]], Any], option: str, name: str = "images"
    ) -> Iterator[tuple[int, Any]]:
        """(index in the global list, columns of the batch) of this process.

        Args:
            dataset: items by index, or a stream of them; an item is a tuple.
            collate: makes a column of what are no tensors, such as labels or captions.
            option: that named its folder, for messages.
            name: for the progress bar.
        Raises:
            UserError: an item cannot be read, or a worker was killed.
        """
        if isinstance(dataset, IterableDataset):
            # Several workers would mix the stream.
            source: Dataset[Any] = _Stream(dataset, option, self._own)
            indices: Iterator[int] = count(world().rank, world().size)
            workers, total = min(self.num_workers, 1), None
            batching: dict[str, Any] = {"batch_size": self.batch_size}
        else:
            spans = self.spans(len(dataset))
            source, indices = _Items(dataset, option), iter(spans)
            workers, total = self.num_workers, len(spans)
            batching = {"batch_sampler": [list(span) for span in spans.values()]}
        with closing(read_batches(source, _columns, workers, "--num_workers", **batching)) as read:
            for columns in progress(read, name, "batch", total):
                if isinstance(columns, UserError):
                    raise columns
                yield next(indices), tuple(c if isinstance(c, Tensor) else collate(c) for c in columns)

    def spans(self, total: int) -> dict[int, range]:
        """{index in the global list: its items} of this process's batches of `total` items."""
        starts = range(0, total, self.batch_size)
        last = len(starts) + (-len(starts) % world().size if self.in_step and total else 0)
        own = [index % len(starts) for index in range(world().rank, last, world().size)]
        return {index: range(starts[index], min(starts[index] + self.batch_size, total)) for index in own}

    def _own(self, stream: Iterable[Value]) -> Iterator[Value]:
        """The items of a stream that belong to this process's batches."""
        for number, item in enumerate(stream):
            if number // self.batch_size % world().size == world().rank:
                yield item

    def in_order(self, own: Mapping[int, Value]) -> list[Value]:
        """What all processes hold, by ascending index in the global list."""
        return _merge(world().gather_objects(own))

    def columns(self, own: Mapping[int, tuple[Tensor, ...]], option: str) -> list[Tensor]:
        """The results of all processes' batches, each kind as one tensor in the dataset's order; on the main process,
        [] elsewhere, since those of a large dataset fill the memory of one process, not of every one on a machine.

        Raises:
            UserError: there was no batch; `option` named the folder.
        """
        batches = _merge(world().gather_on_main(own))
        if world().broadcast(not batches):
            raise UserError(option, "holds no image")
        return [torch.cat(column) for column in zip(*batches, strict=True)]


def _merge(parts: Iterable[Mapping[int, Value]]) -> list[Value]:
    merged = {index: value for part in parts for index, value in part.items()}
    return [merged[index] for index in sorted(merged)]


class _Items(Dataset[Any]):
    """A dataset whose unreadable items come back as a UserError; raised, workers make a traceback of it."""

    def __init__(self, dataset: Any, option: str) -> None:
        self.dataset = dataset
        self.option = option

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            samples = getattr(self.dataset, "samples", None)
            name = samples[index][0] if samples else f"image {index}"
            return UserError(self.option, f"{name}: cannot be read ({error})", rank_local=True)


class _Stream(IterableDataset[Any]):
    """The own items of a stream; a failure ends it with a UserError as its last item."""

    def __init__(self, dataset: Any, option: str, own: Callable[[Iterable[Any]], Iterator[Any]]) -> None:
        self.dataset = dataset
        self.option = option
        self.own = own

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.own(self.dataset)
        except Exception as error:  # what reads the stream may raise anything
            lines = str(error).strip().splitlines() or [type(error).__name__]
            yield UserError(self.option, f"the stream cannot be read ({lines[0]})", rank_local=True)


def _columns(items: list[Any]) -> Any:
    """Of items, as many columns: one tensor of tensors, else a list. Or the first item that could not be read."""
    failed = next((item for item in items if isinstance(item, UserError)), None)
    columns = zip(*items, strict=True) if failed is None else ()
    return failed or tuple(torch.stack(c) if isinstance(c[0], Tensor) else list(c) for c in columns)
