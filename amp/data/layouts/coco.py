"""The folders of COCO: `root/train2017` and `root/val2017`."""

from pathlib import Path

from amp.data.layouts import Split
from amp.data.layouts._folders import images_in


def images(root: str, split: Split) -> list[Path]:
    """Sorted files of a split. Raises UserError."""
    return images_in(root, f"{split}2017", "coco")
