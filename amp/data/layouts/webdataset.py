"""The .tar shards of webdataset: in `root/train` and `root/val`, in one folder, or given by a pattern.

Of one folder, or of a pattern such as `shards/train-{0000..1023}.tar`, every fourth image is held out.
"""

from collections.abc import Sequence

from amp.data.layouts import Source, Split, Undivided
from amp.data.layouts._folders import folder_in, is_split
from amp.data.pixels import EXTENSIONS
from amp.data.shards import find_shards, list_members
from amp.errors import UserError


def images(root: str, split: Split) -> Sequence[Source]:
    """Images of a split in the order of the sorted shards. Raises UserError."""
    divided = is_split(root)
    folder = str(folder_in(root, split, "webdataset")) if divided else root
    members = list_members(find_shards(folder), EXTENSIONS)
    if not members:
        raise UserError("data.root", f"{folder}: holds no image file")
    return members if divided else Undivided(members)
