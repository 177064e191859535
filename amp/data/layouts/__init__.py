"""How people have their images on disk, one file a layout; `data.name` of the settings chooses one.

A layout is a file here with

    def images(root: str, split: Split) -> Sequence[Source]

which gives the images of a split, `train` or `val`, in a fixed order, and raises UserError where `root` holds none.
"""

from pathlib import Path
from typing import Literal

from amp.data.shards import Member

Split = Literal["train", "val"]
Source = Path | Member
