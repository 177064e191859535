"""The digit scenes of the demo, in `root/train` and `root/val`; they are generated if `root` does not exist."""

from pathlib import Path

from amp.data.layouts import Split
from amp.data.layouts._folders import images_in
from amp.data.scenes import build_scenes


def images(root: str, split: Split) -> list[Path]:
    """Sorted files of a split. Raises UserError where `root` is something else."""
    build_scenes(Path(root))
    return images_in(root, split, "digit_scenes")
