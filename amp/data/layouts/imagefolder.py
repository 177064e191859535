"""Any folder of images: `root/train` and `root/val`, or one folder of which every fourth image is held out."""

from collections.abc import Sequence
from pathlib import Path

from amp.data.files import check_root
from amp.data.layouts import Source, Split, Undivided
from amp.data.layouts._folders import images_below, images_in, is_split


def images(root: str, split: Split) -> Sequence[Source]:
    """Sorted files of a split. Raises UserError."""
    if is_split(root):
        return images_in(root, split, "imagefolder")
    check_root(root)
    return Undivided(images_below(Path(root)))
