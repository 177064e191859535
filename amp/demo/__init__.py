"""The demonstration that needs no download: a small dense CLIP, trained on digit scenes."""

from pathlib import Path

# Of a checkout, when in its root; else those that are installed with the package.
CHECKOUT = Path("configs/models/digit_scenes.json").is_file()
CONFIGS = Path("configs") if CHECKOUT else Path(__file__).parents[1] / "configs"
MODEL = CONFIGS / "models" / "digit_scenes.json"
