"""Any folder of images: `root/train` and `root/val`, or one folder of which every fourth image is held out."""

from pathlib import Path

from amp.data.layouts import Split
from amp.data.layouts._folders import images_below, images_in, is_split, part
from amp.errors import UserError


def images(root: str, split: Split) -> list[Path]:
    """Sorted files of a split. Raises UserError."""
    if is_split(root):
        return images_in(root, split, "imagefolder")
    if not Path(root).is_dir():
        raise UserError("data.root", f"{root}: no such folder")
    return part(images_below(Path(root)), split, root)
