"""Runs a tower from any block on: the blocks before it are skipped, its inputs kept from an earlier run.

While a search settles blocks from the last to the first, all blocks before the one under search are dense, and what
they hand to it never changes.

B images, C channels, S side in pixels, L blocks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from amp.data.batches import Batches
from amp.errors import UserError
from amp.pruning.measure.store import InputStore
from amp.run.console import progress
from amp.towers import Tower
from amp.towers.mlps.inputs import first_input

Value = TypeVar("Value")


class Skipped(nn.Module):
    """In a block's place: hands its first input on, in the structure of the block's output.

    Anything else that its tower asks of it, the block answers.
    """

    def __init__(self, block: nn.Module, gives_tuple: bool) -> None:
        super().__init__()
        self.block = block
        self._gives_tuple = gives_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        first = first_input(inputs, named)
        return (first,) if self._gives_tuple else first


class Replay:
    """The features of fixed batches, run from a given block on.

    The inputs of every `every`-th block are kept from the first run of a batch, and those of the block that runs now;
    the others are recomputed from the nearest kept ones. Batches are read when they are first needed.

    Args:
        batches: local shares (B, C, S, S) of the global batches, in a fixed order.
        every: None keeps images alone, and runs every block each time.
    """

    def __init__(self, tower: Tower, batches: Batches | Sequence[Tensor], store: InputStore, every: int | None) -> None:
        self._tower, self._store, self._every = tower, store, every
        self._unread = iter(batches)
        self._num_batches = len(batches)
        self._num_read = 0
        self._block = 0
        self._names = list(tower.blocks)
        self._num_blocks = len(self._names)
        self._input_bytes = 0
        self._skipped: list[Skipped] = []
        self._handed: Tensor | None = None
        self._caught: dict[int, Tensor] = {}
        self._blank_BCSS = self._prove() if every else self.images(0)

    def images(self, batch: int) -> Tensor:
        """(B, C, S, S) on the device, in the tower's precision."""
        while self._num_read <= batch:
            self._store.put((0, self._num_read), next(self._unread).to(self._tower.dtype))
            self._num_read += 1
        return self._store.get((0, batch))

    @property
    def batch_size(self) -> int:
        """Images of this process in a batch."""
        return len(self._blank_BCSS)

    @property
    def stored_bytes(self) -> int:
        """Kept at most: all images, the inputs of every n-th block, and those of the block that runs."""
        inputs = 0
        if self._every and self._num_blocks > 1:
            levels = (self._num_blocks - 1) // self._every
            inputs = (levels + (self._every > 1)) * self._input_bytes
        return self._num_batches * (self._blank_BCSS.nbytes + inputs)

    def close(self) -> None:
        """Forgets images and inputs."""
        self._store.clear()

    def map(self, block: int, batches: Sequence[int], read: Callable[[Tensor], Value]) -> list[Value]:
        """`read(feature)` of each batch, by the blocks from `block` on; those before it must be dense."""
        if self._every and block != self._block:
            self._forget(block, self._every)
        if block == 0 or not self._every:
            return [read(self._tower.feature(self.images(batch))) for batch in self._shown(batches)]
        self._fill(block, batches)
        values = []
        with self._only(block, self._num_blocks, ()):
            for batch in batches:
                self._handed = self._store.get((block, batch))
                values.append(read(self._tower.feature(self._blank_BCSS)))
        self._handed = None
        return values

    def _forget(self, block: int, every: int) -> None:
        """Drops the inputs that a search which has come to `block` needs no more."""
        self._store.drop(lambda kept: kept > block or (kept % every > 0 and kept != block))
        self._block = block

    def _fill(self, block: int, batches: Iterable[int]) -> None:
        """Keeps the inputs of `block`, and those of every n-th block on the way to it."""
        levels = range(0, block + 1, self._every or 1)
        missing: dict[int, list[int]] = {}
        for batch in batches:
            if (block, batch) not in self._store:
                start = max((s for s in levels if (s, batch) in self._store), default=0)
                missing.setdefault(start, []).append(batch)
        for start, group in missing.items():
            watched = {block, *(s for s in levels if s > start)}
            with self._only(start, block, watched):
                for batch in self._shown(group):
                    self._handed = self._store.get((start, batch)) if start else None
                    self._tower.feature(self._blank_BCSS if start else self.images(batch))
                    for caught, tensor in self._caught.items():
                        self._store.put((caught, batch), tensor)
        self._handed = None
        self._caught.clear()

    def _shown(self, batches: Sequence[int]) -> Iterable[int]:
        """The batches, under a progress bar where they are all read for the first time."""
        first = self._num_read <= 1 < len(batches) == self._num_batches
        return progress(batches, "held-out images", "batch") if first else batches

    @contextmanager
    def _only(self, first: int, last: int, watched: Iterable[int]) -> Iterator[None]:
        """Blocks first ... last - 1 run, the others are skipped; inputs of `watched` blocks are caught."""
        visual = self._tower.visual
        originals = list(self._tower.blocks.values())
        others = [index for index in range(len(originals)) if not first <= index < last]
        handles = []
        try:
            for index in others:
                visual.set_submodule(self._names[index], self._skipped[index])
            if first:
                handles.append(originals[first].register_forward_pre_hook(self._hand_in, with_kwargs=True))
            for index in watched:
                module = visual.get_submodule(self._names[index])
                handles.append(module.register_forward_pre_hook(self._catch(index), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for index in others:
                visual.set_submodule(self._names[index], originals[index])

    def _hand_in(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if inputs:
            return (self._handed, *inputs[1:]), named
        return inputs, {**named, next(iter(named)): self._handed}

    def _catch(self, index: int) -> Callable[..., None]:
        def catch(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._caught[index] = first_input(inputs, named)

        return catch

    @torch.inference_mode()
    def _prove(self) -> Tensor:
        """Blank images; raises UserError unless a replay of the last block gives the feature of the whole run."""
        images_BCSS = self.images(0)
        outputs: list[Any] = []
        handles = [
            block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
            for block in self._tower.blocks.values()
        ]
        try:
            few_BCSS = images_BCSS[:2]
            expected_BD = self._tower.feature(few_BCSS)
        finally:
            for handle in handles:
                handle.remove()
        for block, output in zip(self._tower.blocks.values(), outputs, strict=True):
            self._skipped.append(Skipped(block, isinstance(output, tuple)))
        last = self._num_blocks - 1
        with self._only(0, last, [last]):
            self._tower.feature(few_BCSS)
        self._handed = self._caught.pop(last)
        self._input_bytes = self._handed.nbytes * len(images_BCSS) // len(few_BCSS)
        with self._only(last, last + 1, ()):
            found_BD = self._tower.feature(torch.zeros_like(few_BCSS))
        self._handed = None
        if last and not torch.allclose(found_BD, expected_BD, rtol=1e-3, atol=1e-3, equal_nan=True):
            name = type(self._tower.visual).__name__
            raise UserError(
                "prune.search",
                f"a {name} cannot be run from a block onwards; use plain, which runs every block each time",
            )
        return torch.zeros_like(images_BCSS)
