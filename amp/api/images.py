"""The images of a call in memory: those that neurons are scored and refitted on, and those that are held out.

B images, C channels, S side in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from amp.api.settings import Asked
from amp.data.batches import Batches
from amp.data.given import batches_of, collect, is_path
from amp.data.layouts import SPLITS, Split
from amp.data.layouts._folders import images_below
from amp.data.listing import HELD_OUT, HELD_OUT_EVERY, SCORED, Listing, too_few
from amp.errors import under
from amp.settings.prune import PruneConfig
from amp.towers import Tower

Given = Batches | Sequence[Tensor]


@dataclass(frozen=True)
class Images:
    """Batches (B, C, S, S): to score on, held out, and that a compensation sees; and the settings that they fit."""

    scored: Given
    held_out: Given
    calibration: Callable[[], Given]
    config: PruneConfig


@contextmanager
def arguments_named() -> Iterator[None]:
    """UserErrors name the argument of a call instead of the setting that it is."""
    with under("images", instead_of="data.root"), under("batch_size", instead_of="data.batch_size"):
        yield


def open_images(images: Any, held_out: Any, tower: Tower, asked: Asked) -> Images:
    """The images of a call.

    Args:
        images: a path, or whatever `amp.data.given.collect` takes.
        held_out: the same, or None: every fourth one of `images`, or the last quarter of them.
    Raises:
        UserError: no images, or too few for a batch.
    """
    if is_path(images) and held_out is None:
        return _of_folder(tower, asked)
    data = asked.config().data
    scored_most, held_out_most = data.num_samples or asked.most, data.num_val_samples or asked.most
    read = partial(_read, tower, data.seed if data.shuffle else None)
    if held_out is None:
        found = read(images, scored_most + held_out_most, "images")
        count = min(held_out_most, max(len(found) // HELD_OUT_EVERY, min(data.batch_size, len(found) // 2)))
        scored, apart = found[: len(found) - count], found[len(found) - count :]
    else:
        scored, apart = read(images, scored_most, "images"), read(held_out, held_out_most, "held_out")
    config = asked.config(len(scored), len(apart))
    size, calibrated = config.data.batch_size, config.prune.num_calibration_samples
    for part, what in ((scored, SCORED), (apart, HELD_OUT)):
        if len(part) < size:
            raise too_few(size, len(part), what)
    return Images(
        batches_of(scored, size), batches_of(apart, size), partial(batches_of, scored[:calibrated], size), config
    )


def _read(tower: Tower, seed: int | None, images: Any, most: int, key: str) -> Tensor:
    files = images_below(Path(images)) if is_path(images) else images
    return collect(files, tower.transform, tower.image_size, most, seed, key)


def _of_folder(tower: Tower, asked: Asked) -> Images:
    data = asked.config().data
    listing = Listing(data)
    config = asked.config(*(len(listing.images(split)) for split in SPLITS))
    own = partial(_batches, tower, config, listing)
    return Images(
        own("train", config.data.num_samples),
        own("val", config.data.num_val_samples),
        partial(own, "train", config.prune.num_calibration_samples),
        config,
    )


def _batches(tower: Tower, config: PruneConfig, listing: Listing, split: Split, num_samples: int | None) -> Batches:
    return Batches(listing.images(split), tower.transform, config.data, num_samples)
