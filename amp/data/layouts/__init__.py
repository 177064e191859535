"""How people have their images on disk, one file a layout; `data.name` of the settings chooses one.

A layout is a file here with

    def images(root: str, split: Split) -> Sequence[Source]

which gives the images of a split, `train` or `val`, in a fixed order, and raises UserError where `root` holds none. Of
images that no folder divides it gives all, as `Undivided`; `amp.data.listing` holds out a part of them.
"""

from pathlib import Path
from typing import Literal

from amp.data.shards import Member

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
Source = Path | Member


class Undivided(list[Source]):
    """Images of no split."""
