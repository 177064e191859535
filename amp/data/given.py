"""Images that are given as objects: tensors, PIL images, a dataset or a loader of them.

B images, C channels, S side in pixels, N images in all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from amp.data.layouts import Source
from amp.data.listing import too_few
from amp.data.pixels import BrokenImageError, as_rgb, read_rgb
from amp.errors import UserError
from amp.run.console import progress

KEYS = ("pixel_values", "images", "image", "img")
KINDS = (
    "a folder, a DataLoader, a dataset, or a list of images: PIL images, files, uint8 arrays (height, width, 3), "
    "or tensors (C, S, S) or (B, C, S, S)"
)


def collect(
    images: Any, transform: Callable[[Any], Tensor], side: int, most: int, seed: int | None = None, key: str = "images"
) -> Tensor:
    """The first `most` images of what is given, or fewer where there are no more: (N, C, S, S), on the CPU.

    Labels beside an image are left aside. A list and a dataset are taken in a random order, which `seed` fixes; None
    takes them in theirs. A loader is taken as it comes.

    Args:
        transform: of PIL images, of files of images, and of uint8 arrays (height, width, 3).
        side: S, that the model takes.
        key: what the argument is called, for messages.
    Raises:
        UserError: none of the kinds above, no images, or images of another shape.
    """
    found: list[Tensor] = []
    taken = 0
    with progress(None, "images", "image", total=_number(images, most)) as bar:
        for item in _items(images, seed, key):
            batch_BCSS = _as_batch(item, transform, side, key)
            found.append(batch_BCSS[: most - taken].detach().cpu())
            taken += len(found[-1])
            bar.update(len(found[-1]))
            if taken >= most:
                break
    if not found:
        raise UserError(key, "holds no image")
    return torch.cat(found)


def count_images(images: Any) -> int | None:
    """How many single images are given; None where that cannot be known, and of what comes in batches."""
    if not hasattr(images, "__len__") or hasattr(images, "batch_size"):
        return None
    first = images[0] if isinstance(images, (list, tuple)) and images else None
    return None if isinstance(first, Tensor) and first.ndim == 4 else len(images)


def batches_of(images_NCSS: Tensor, batch_size: int) -> list[Tensor]:
    """Whole batches (B, C, S, S) of them, in their order; the incomplete last one is dropped."""
    whole = len(images_NCSS) // batch_size * batch_size
    return list(images_NCSS[:whole].split(batch_size))


def is_path(images: Any) -> bool:
    """Whether the images are named by a path."""
    return isinstance(images, (str, Path))


def _number(images: Any, most: int) -> int | None:
    """How many will be taken, where that can be known; the last batch of a loader may have fewer."""
    return min(most, len(images) * (getattr(images, "batch_size", None) or 1)) if hasattr(images, "__len__") else None


def _items(images: Any, seed: int | None, key: str) -> Iterator[Any]:
    indexed = hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, IterableDataset)
    if isinstance(images, (bytes, Mapping)) or not (indexed or isinstance(images, Iterable)):
        raise UserError(key, f"{type(images).__name__} is not allowed; give {KINDS}")
    if indexed:
        order = range(len(images)) if seed is None else torch.randperm(len(images), generator=_generator(seed)).tolist()
        return (images[index] for index in order)
    return iter(images)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _as_batch(item: Any, transform: Callable[[Any], Tensor], side: int, key: str) -> Tensor:
    image = _image_of(item, key)
    try:
        if is_path(image):
            image = transform(read_rgb(Path(image)))
        elif isinstance(image, Image.Image):
            image = transform(as_rgb(image))
        elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            image = transform(Image.fromarray(image))
    except BrokenImageError as error:
        raise UserError(key, f"{image}: broken image ({error})") from None
    if not isinstance(image, Tensor):
        kind = f"{image.dtype} array" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(key, f"holds a {kind}; give {KINDS}")
    batch_BCSS = image if image.ndim == 4 else image[None]
    if tuple(batch_BCSS.shape[1:]) != (3, side, side):
        shape = " x ".join(map(str, batch_BCSS.shape[1:]))
        raise UserError(
            key, f"holds images of shape {shape}; the model takes 3 x {side} x {side}, which its transform returns"
        )
    if not batch_BCSS.is_floating_point():
        raise UserError(
            key, f"holds images of {batch_BCSS.dtype}; the model takes floating point, which its transform returns"
        )
    if not batch_BCSS.isfinite().all():
        raise UserError(key, "holds an image with values that are not finite")
    return batch_BCSS


def _image_of(item: Any, key: str) -> Any:
    """Of an item with labels: the first of a tuple, or what a dictionary has under one of `KEYS`."""
    if isinstance(item, Mapping):
        name = next((name for name in KEYS if name in item), None)
        if name is None:
            raise UserError(
                key, f"holds dictionaries with the keys {', '.join(map(str, item))}; expected one of {', '.join(KEYS)}"
            )
        return item[name]
    if isinstance(item, (tuple, list)) and item:
        return item[0]
    return item


@dataclass(frozen=True)
class Stream:
    """So many batches of what is given, gone through again and again; a list and a dataset in another order each time.

    A loader's batches are taken as they come; single images are put together, and what is left over at the end of a
    pass is dropped.

    Attributes:
        images, transform, side, seed: as of `collect`.
        steps: batches in all.
    Raises:
        UserError: as of `collect`, or images that can be gone through but once.
    """

    images: Any
    transform: Callable[[Any], Tensor]
    side: int
    batch_size: int
    steps: int
    seed: int | None = 0

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """(B, C, S, S) of the batches, from `start` on."""
        return islice(self._endless(), start, self.steps)

    def files(self, epoch: int, batch: int) -> list[Source]:
        """None: images in memory have no names."""
        return []

    def _endless(self) -> Iterator[Tensor]:
        done = 0
        for turn in count():
            before = done
            for batch_BCSS in self._pass(turn):
                done += 1
                yield batch_BCSS
            if done == before:
                advice = "give a loader that can be iterated again"
                raise UserError("images", f"end after {done} of {self.steps} steps; {advice}")

    def _pass(self, turn: int) -> Iterator[Tensor]:
        waiting: list[Tensor] = []
        too_small = turn == 0  # until there was a batch
        for item in _items(self.images, None if self.seed is None else self.seed + turn, "images"):
            batch_BCSS = _as_batch(item, self.transform, self.side, "images")
            if len(batch_BCSS) > 1:
                too_small = False
                yield batch_BCSS
                continue
            waiting.append(batch_BCSS)
            if len(waiting) == self.batch_size:
                too_small = False
                yield torch.cat(waiting)
                waiting = []
        if too_small:
            raise too_few(self.batch_size, len(waiting), "given") if waiting else UserError("images", "holds no image")
