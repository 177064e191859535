"""Laws of the augmentation: a function of seed, epoch and index, by the papers' recipes."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.numbered_images import MAY_WARN_OF_WORKERS, read_number, settings, world
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from amp.data.augmentation import augmentation
from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.run.world import among

pytestmark = MAY_WARN_OF_WORKERS

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 noisy images, and a copy of the first."""
    folder = tmp_path_factory.mktemp("pictures") / "train"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    shutil.copy(folder / "00.png", folder / "00copy.png")
    return folder.parent


def augmented(root: Path, recipe: Any, number: int = 0, start: int = 0, **more: Any) -> Tensor:
    """The images of an epoch (N, 3, 24, 24), in its order."""
    data = settings(root, **more)
    transform = augmentation(recipe, 24, MEAN, STD, "bicubic")
    batches = Batches(list_images(data, "train"), transform, data)
    return torch.cat(list(batches.epoch(number, start)))


@pytest.mark.parametrize("recipe", ["clip", "dinov2"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(pictures: Path, recipe: str) -> None:
    first = augmented(pictures, recipe, shuffle=False)
    assert first.shape == (12, 3, 24, 24)
    assert first.dtype == torch.float32
    torch.manual_seed(123)
    assert torch.equal(augmented(pictures, recipe, shuffle=False), first)
    assert torch.equal(augmented(pictures, recipe, shuffle=False, num_workers=2), first)
    assert torch.equal(augmented(pictures, recipe, shuffle=False, batch_size=2), first)
    assert torch.equal(augmented(pictures, recipe, shuffle=False, start=1), first[4:])
    shares = []
    for rank in (0, 1):
        with among(world(rank, 2)):
            shares.append(augmented(pictures, recipe, shuffle=False))
    assert torch.equal(torch.cat([s.unflatten(0, (3, 2)) for s in shares], dim=1).flatten(0, 1), first)
    # Shuffled, each image keeps its own crop.
    data = settings(pictures, batch_size=13)
    order = Batches(list_images(data, "train"), read_number, data).order(0)
    shuffled = augmented(pictures, recipe, batch_size=13)
    back = shuffled[torch.tensor(order).argsort()]
    assert torch.equal(back[:12], first)


@pytest.mark.parametrize("recipe", ["clip", "dinov2"])
def test_augmentation_differs_between_epochs_seeds_and_images(pictures: Path, recipe: str) -> None:
    first = augmented(pictures, recipe, shuffle=False)
    for other in (
        augmented(pictures, recipe, number=1, shuffle=False),
        augmented(pictures, recipe, number=2, shuffle=False),
        augmented(pictures, recipe, shuffle=False, seed=1),
    ):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    # 00.png and 00copy.png are one picture under two indices.
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_leaves_every_global_random_state_alone(pictures: Path, num_workers: int) -> None:
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    augmented(pictures, "dinov2", num_workers=num_workers)
    assert random.getstate() == python_state
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))
    assert torch.equal(torch.get_rng_state(), torch_state)


def parts_of(recipe: Any) -> dict[type, Any]:
    """Transforms by type, the randomly applied ones with their probability."""
    compose: Any = augmentation(recipe, 24, MEAN, STD, "bilinear")
    parts: dict[type, Any] = {}
    for part in compose.transforms:
        inner = part.transforms[0] if isinstance(part, v2.RandomApply) else part
        parts[type(inner)] = (inner, getattr(part, "p", None))
    return parts


def test_recipe_of_clip_is_the_papers() -> None:
    parts = parts_of("clip")
    crop, _ = parts[v2.RandomResizedCrop]
    assert (tuple(crop.scale), tuple(crop.size)) == ((0.2, 1.0), (24, 24))
    assert crop.interpolation.value == "bilinear"
    assert parts[v2.RandomHorizontalFlip][1] == 0.5
    colours = (v2.ColorJitter, v2.RandomGrayscale, v2.GaussianBlur, v2.RandomSolarize)
    assert not any(kind in parts for kind in colours)


def test_recipe_of_dinov2_is_the_papers() -> None:
    parts = parts_of("dinov2")
    crop, _ = parts[v2.RandomResizedCrop]
    assert tuple(crop.scale) == (0.05, 1.0)
    assert parts[v2.RandomHorizontalFlip][1] == 0.5
    jitter, probability = parts[v2.ColorJitter]
    assert probability == 0.8
    assert jitter.brightness == jitter.contrast == (0.6, 1.4)
    assert (jitter.saturation, jitter.hue) == ((0.8, 1.2), (-0.1, 0.1))
    assert parts[v2.RandomGrayscale][1] == 0.2
    assert parts[v2.RandomSolarize][1] == 0.2
    assert v2.GaussianBlur in parts
    # Solarising inverts above half of the range, so it must see bytes, before the scaling to 0-1.
    kinds = list(parts)
    assert kinds.index(v2.RandomSolarize) < kinds.index(v2.ToDtype) < kinds.index(v2.Normalize)


@pytest.mark.parametrize("recipe", ["clip", "dinov2"])
def test_augmented_images_are_normalised_once(recipe: Any) -> None:
    grey = Image.new("RGB", (40, 48), (255, 255, 255))
    torch.manual_seed(0)
    transform = augmentation(recipe, 24, MEAN, STD, "bicubic")
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    for _ in range(20):
        image_CHW = transform(grey)
        assert (image_CHW <= white.view(3, 1, 1) + 1e-5).all()
        assert (image_CHW >= black.view(3, 1, 1) - 1e-5).all()
    if recipe == "clip":
        torch.testing.assert_close(image_CHW, white.view(3, 1, 1).expand(3, 24, 24))
