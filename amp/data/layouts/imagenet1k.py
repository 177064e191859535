"""ImageNet-1k or a part of it: `root/train` and `root/val`, with a folder for each class."""

from pathlib import Path

from amp.data.layouts import Split
from amp.data.layouts._folders import images_in


def images(root: str, split: Split) -> list[Path]:
    """Sorted files of a split. Raises UserError."""
    return images_in(root, split, "imagenet1k")
