"""`amp.prune` takes images in any way that people have them, and tells what does not fit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import refusal
from helpers.objects import equal, tiny_vit, weights_of
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import amp


@pytest.fixture
def vit() -> nn.Module:
    return tiny_vit()


def _photos(folder: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    for index in range(24):
        Image.fromarray(generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{index:02d}.png")
    return sorted(folder.glob("*.png"))


@pytest.mark.slow
def test_images_may_come_in_any_way(vit: nn.Module, tmp_path: Path) -> None:
    paths = _photos(tmp_path)
    data_config = timm.data.resolve_model_data_config(vit) | {"input_size": (3, 32, 32)}
    transform = timm.data.create_transform(**data_config)
    opened = [Image.open(path) for path in paths]
    tensors = torch.stack([transform(image) for image in opened])
    labelled = TensorDataset(tensors, torch.zeros(len(tensors)))
    ways: dict[str, Any] = {
        "paths": paths,
        "PIL images": opened,
        "an array": np.stack([np.asarray(image) for image in opened]),
        "tensors": list(tensors),
        "one tensor": tensors,
        "batches": list(tensors.split(5)),
        "a dataset with labels": labelled,
        "a loader with labels": DataLoader(labelled, batch_size=7),
        "dictionaries": [{"pixel_values": image, "labels": 0} for image in tensors],
        "a generator": (image for image in tensors),
    }
    cheaply: dict[str, Any] = {"params": 0.8, "refit_steps": 0}
    found = [
        weights_of(amp.prune(vit, way, shuffle=False, num_samples=16, batch_size=8, **cheaply).model)
        for way in ways.values()
    ]
    assert [equal(found[0], other) for other in found] == [True] * len(ways)
    assert amp.prune(vit, tmp_path, **cheaply).report.widths


def bad_images() -> Iterator[tuple[Any, str]]:
    yield 3, "images: int is not allowed; give a folder"
    yield [], "images: holds no image"
    yield [torch.zeros(3, 30, 30)], "images: holds images of shape 3 x 30 x 30; the model takes 3 x 32 x 32"
    yield [torch.zeros(3, 32, 32, dtype=torch.uint8)], "images: holds images of torch.uint8"
    yield np.zeros((4, 32, 32)), "images: holds a float64 array; give a folder"
    yield [torch.full((3, 32, 32), torch.nan)], "images: holds an image with values that are not finite"
    yield [{"x": 1}], "images: holds dictionaries with the keys x; expected one of pixel_values"
    yield ["nowhere.png"], "images: nowhere.png: broken image"
    yield "nowhere", "images: nowhere: no such folder"
    yield [torch.zeros(3, 32, 32)], "images: 1 image for scoring; at least 2 are needed"


@pytest.mark.slow
@pytest.mark.parametrize(("given", "words"), list(bad_images()))
def test_images_that_do_not_fit_are_told(given: Any, words: str, vit: nn.Module) -> None:
    assert words in refusal(lambda: amp.prune(vit, given, params=0.5))
