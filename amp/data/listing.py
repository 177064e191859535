"""The images of a split, whatever their layout on disk."""

from collections.abc import Sequence

from amp.data.layouts import Source, Split
from amp.errors import UserError
from amp.registry import LAYOUTS
from amp.run.processes.environment import is_one_of_several
from amp.settings.data import SMALLEST_BATCH, DataSettings

SCORED, HELD_OUT = "for scoring", "held out"  # what is said of the images of a pruning
FEW = 512  # images to rank neurons on


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
        need = ", which the search needs" if split == "val" else ""
        raise too_few(settings.batch_size, count, f"of the split {split!r} of {settings.root}{need}")


def check_images(settings: DataSettings, filled: Sequence[Split], found: Sequence[Split] = ()) -> None:
    """What is wrong with the images of a run, before torch is imported. Where it is one of several processes, they meet
    first, and the main one looks for all of them.

    Args:
        filled: splits that must hold a batch.
        found: splits that must hold an image.
    Raises:
        UserError: one does not.
    """
    if is_one_of_several():
        return
    for split in filled:
        check_fills_batch(settings, split)
    for split in (split for split in found if split not in filled):
        list_images(settings, split)


def few(count: int | None) -> str:
    """What is said of fewer images than rank neurons well; nothing of enough, or of all that there are (None)."""
    if count is None or count >= FEW:
        return ""
    return f"note: {count} images are few for ranking neurons; use at least {FEW}, better 2048"


def too_few(batch_size: int, count: int, which: str) -> UserError:
    """That `count` images, which ones in words, do not make a batch."""
    if batch_size == SMALLEST_BATCH:
        return UserError("data.root", f"{count} image{'s' * (count != 1)} {which}; at least {batch_size} are needed")
    return UserError("data.batch_size", f"{batch_size} is more than the {count} images {which}")
