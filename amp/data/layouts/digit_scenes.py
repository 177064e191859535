"""The digit scenes of the demo, in `root/train` and `root/val`; they are generated if `root` does not exist."""

from pathlib import Path

from amp.data.layouts import Split
from amp.data.layouts._folders import images_in
from amp.data.scenes import build_scenes
from amp.run.console import say


def images(root: str, split: Split) -> list[Path]:
    """Sorted files of a split. Raises UserError where `root` is something else."""
    if not Path(root).is_dir():
        say(f"building the digit scenes in {root}")
    build_scenes(Path(root))
    return images_in(root, split, "digit_scenes")
