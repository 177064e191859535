"""The augmentation of distillation."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torchvision.transforms import InterpolationMode, v2

from amp.data.batches import Transform


def augmentation(
    recipe: Literal["clip", "dinov2"],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
) -> Transform:
    """The paper's augmentation for distillation: PIL image -> (C, S, S) fp32.

    clip: random resized crop of 0.2-1 of the area, and flip. dinov2: crop of 0.05-1, flip, colour jitter
    (0.4, 0.4, 0.2, 0.1) at 0.8, greyscale at 0.2, Gaussian blur, solarise at 0.2. The paper gives the blur no
    probability; 0.1 is DINOv2's own for its view that solarises.
    """
    mode = InterpolationMode(interpolation)
    crop: list[Any] = [
        v2.RandomResizedCrop(image_size, scale=(0.2 if recipe == "clip" else 0.05, 1.0), interpolation=mode),
        v2.RandomHorizontalFlip(),
    ]
    colour: list[Any] = [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(9, sigma=(0.1, 2.0))], p=0.1),
        v2.RandomSolarize(threshold=128, p=0.2),
    ]
    finish: list[Any] = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
    ]
    return v2.Compose([*crop, *(colour if recipe == "dinov2" else []), *finish])
