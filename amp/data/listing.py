"""The images of a split, whatever their layout on disk."""

from collections.abc import Sequence

from amp.data.layouts import Source, Split
from amp.errors import UserError
from amp.registry import LAYOUTS
from amp.settings.data import DataSettings


def list_images(settings: DataSettings, split: Split) -> Sequence[Source]:
    """Images of a split in a fixed order: files, or the members of shards.

    Raises:
        UserError: the folder is missing or holds no image file.
    """
    images: Sequence[Source] = LAYOUTS.load(settings.name).images(settings.root, split)
    return images


def check_fills_batch(settings: DataSettings, split: Split) -> None:
    """Raises UserError unless the split holds a batch of images."""
    count = len(list_images(settings, split))
    if count < settings.batch_size:
        why = f"of the split {split!r} of {settings.root}, which the search needs"
        raise too_few(settings.batch_size, count, why)


def too_few(batch_size: int, count: int, which: str) -> UserError:
    """That `count` images, which ones in words, do not make a batch."""
    return UserError("data.batch_size", f"{batch_size} is more than the {count} images {which}")
