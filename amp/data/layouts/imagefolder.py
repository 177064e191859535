"""Any folder of images: `root/train` and `root/val`, or one folder of which every fourth image is held out."""

from pathlib import Path

from amp.data.files import check_root
from amp.data.layouts import Split
from amp.data.layouts._folders import images_below, images_in, is_split, part


def images(root: str, split: Split) -> list[Path]:
    """Sorted files of a split. Raises UserError."""
    if is_split(root):
        return images_in(root, split, "imagefolder")
    check_root(root)
    return part(images_below(Path(root)), split, root)
