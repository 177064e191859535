"""The images of a split, whatever their layout on disk."""

from collections.abc import Sequence

from amp.data.layouts import Source, Split
from amp.registry import LAYOUTS
from amp.settings.data import DataSettings


def list_images(settings: DataSettings, split: Split) -> Sequence[Source]:
    """Images of a split in a fixed order: files, or the members of shards.

    Raises:
        UserError: the folder is missing or holds no image file.
    """
    images: Sequence[Source] = LAYOUTS.load(settings.name).images(settings.root, split)
    return images
