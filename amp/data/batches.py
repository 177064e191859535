"""Images without labels in a fixed global order, each process its share of every batch.

B images, C channels, S side in pixels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from amp.data.files import printable
from amp.data.layouts import Source
from amp.data.listing import too_few
from amp.data.loading import read_batches
from amp.data.pixels import BrokenImageError, read_rgb
from amp.data.shards import Member, shuffle_nearby
from amp.errors import UserError
from amp.run.console import say, warn_here
from amp.run.world import world
from amp.settings.data import DataSettings
from amp.settings.verbosity import is_verbose

Transform = Callable[[Any], Tensor]
NAMED = 3  # broken images of each process


class _Images(Dataset[tuple[Tensor, list[tuple[str, str]]]]):
    """(epoch, index) -> the transformed image, and the broken files met on the way to it.

    The next readable file in listing order stands in for a broken one, so that batches keep their size and do not
    depend on the number of processes. Random transforms are seeded by (seed, epoch, index) alone.
    """

    def __init__(self, paths: Sequence[Source], transform: Transform, seed: int) -> None:
        self.paths = paths
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, list[tuple[str, str]]]:
        epoch, index = key
        broken: list[tuple[str, str]] = []
        for step in range(len(self.paths)):
            source = self.paths[(index + step) % len(self.paths)]
            try:
                image = read_rgb(source)
            except BrokenImageError as error:
                broken.append((printable(source), str(error)))
                continue
            with torch.random.fork_rng(devices=[]):
                mixed = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
                torch.default_generator.manual_seed(int(mixed[0] >> np.uint64(1)))
                return self.transform(image), broken
        return torch.empty(0), broken


def _collate(
    items: list[tuple[Tensor, list[tuple[str, str]]]],
) -> tuple[Tensor | None, list[tuple[str, str]]]:
    broken = [b for _, found in items for b in found]
    images = [image for image, _ in items]
    return (None if any(i.numel() == 0 for i in images) else torch.stack(images)), broken


@dataclass
class Batches:
    """This process's contiguous share of every global batch; the incomplete last batch is dropped.

    Attributes:
        broken: files that could not be read and were skipped, by this process.
    """

    paths: Sequence[Source]
    transform: Transform
    settings: DataSettings
    num_samples: int | None = None
    broken: dict[str, str] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _num_read: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._share = world().share(self.settings.batch_size)
        if len(self) == 0:
            which = f"of this split of {self.settings.root}"
            raise too_few(self.settings.batch_size, len(self.order(0)), which)

    def order(self, epoch: int) -> list[int]:
        """Indices of `paths` in the global order of an epoch."""
        if self.settings.shuffle:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            members = [source for source in self.paths if isinstance(source, Member)]
            indices = (
                shuffle_nearby(members, generator)
                if members
                else torch.randperm(len(self.paths), generator=generator).tolist()
            )
        else:
            indices = list(range(len(self.paths)))
        return indices[: self.num_samples]

    def files(self, epoch: int, batch: int) -> list[Source]:
        """Of a global batch of an epoch, in order."""
        return [self.paths[index] for index in self._cut(self.order(epoch), batch)]

    def _cut(self, order: list[int], batch: int) -> list[int]:
        return order[batch * self.settings.batch_size : (batch + 1) * self.settings.batch_size]

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return min(self.num_samples or len(self.paths), len(self.paths)) // self.settings.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Local images (B / processes, C, S, S) fp32 of the epoch's batches, from batch `start` on."""
        order = self.order(epoch)
        keys = [[(epoch, i) for i in self._cut(order, b)[self._share]] for b in range(start, len(self))]
        images_of = _Images(self.paths, self.transform, self.settings.seed)
        workers = self.settings.num_workers
        with closing(read_batches(images_of, _collate, workers, "data.num_workers", batch_sampler=keys)) as read:
            for images, broken in read:
                self._num_read += self._share.stop - self._share.start
                self._note(broken)
                if images is None:
                    raise UserError("data.root", f"{self.settings.root}: holds no readable image")
                if broken:
                    self._check_share(*broken[-1])
                yield images
        self._tell_rest()

    def _note(self, broken: list[tuple[str, str]]) -> None:
        for path, reason in broken:
            if self.settings.strict:
                raise UserError("data.strict", f"{path}: broken image ({reason})", rank_local=True)
            if path not in self.broken:
                self.broken[path] = reason
                if len(self.broken) <= NAMED or is_verbose():
                    self._told.add(path)
                    warn_here(f"skipped broken image {path} ({reason})")

    def _tell_rest(self) -> None:
        if rest := len(self.broken.keys() - self._told):
            self._told |= self.broken.keys()
            warn_here(f"skipped {rest} more broken image{'s' * (rest > 1)}")

    def _check_share(self, last: str, reason: str) -> None:
        # Of the images that this process has read, or will have read in an epoch.
        seen = min(len(self.paths), max(self._num_read, len(self.paths) // world().size))
        if len(self.broken) > math.ceil(self.settings.max_broken * seen):
            raise UserError(
                "data.max_broken",
                f"{len(self.broken)} of {seen} images are broken, the last one {last} ({reason}); "
                f"more than the allowed share of {self.settings.max_broken:g}",
                rank_local=True,
            )

    def say_broken(self) -> None:
        """One line with the number of skipped files over all processes, if any."""
        found = set().union(*world().gather_objects(set(self.broken)))
        if found:
            say(
                f"skipped {len(found)} of {len(self.paths)} image files, which are broken; used the next readable "
                "ones instead"
            )
