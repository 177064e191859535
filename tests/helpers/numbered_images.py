"""Images that carry their own number, and the batches made of them, for the tests of amp.data."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.run.world import World, among
from amp.settings.data import DataSettings

# A machine of one core warns of two workers.
MAY_WARN_OF_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, torch.device("cpu"))


def write_images(folder: Path, *names: str) -> list[Path]:
    """Images that carry their own number in their first pixel."""
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 8, 3), 99, dtype=np.uint8)
        pixels[0, 0] = (number // 256, number % 256, 0)
        Image.fromarray(pixels).save(path, format="PNG")
    return paths


def read_number(image: Image.Image) -> Tensor:
    """A transform: the number that `write_images` gave the image."""
    red, green, _ = image.getpixel((0, 0))
    return torch.tensor(256 * red + green)


def settings(root: Path, **more: Any) -> DataSettings:
    return DataSettings(
        **{"name": "imagefolder", "root": str(root), "batch_size": 4, "num_workers": 0, "max_broken": 1.0} | more
    )


def numbers(batches: Sequence[Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def joined(parts: Iterable[list[int]]) -> list[int]:
    return [number for part in parts for number in part]


def epoch(root: Path, world: World, number: int = 0, start: int = 0, **more: Any) -> list[list[int]]:
    own = settings(root, **more)
    with among(world):
        batches = Batches(list_images(own, "train"), read_number, own)
        return numbers(list(batches.epoch(number, start)))
