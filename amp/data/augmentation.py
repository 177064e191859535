"""The augmentation of distillation, and of images that are at hand.

B images, C channels, S side in pixels.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from amp.data.batches import Transform
from amp.run.world import world

AREA, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # of a crop: the share of the image, and width by height


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


def random_crops(images_BCSS: Tensor, generator: torch.Generator) -> Tensor:
    """Random resized crops, each flipped or not, as of the augmentation `clip`; bilinear, in the images' dtype.

    Those of an image are the same on any number of processes.

    Args:
        images_BCSS: this process's share of a global batch, normalised.
        generator: on the CPU.
    """
    local = len(images_BCSS)
    count = local * world().size

    def drawn(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    area_N, ratio_N = drawn(*AREA), drawn(*map(math.log, RATIO)).exp()
    width_N, height_N = (area_N * ratio_N).sqrt().clamp(max=1), (area_N / ratio_N).sqrt().clamp(max=1)
    theta_N23 = torch.zeros(count, 2, 3)
    theta_N23[:, 0, 0] = width_N * drawn(-1, 1).sign()
    theta_N23[:, 0, 2] = drawn(-1, 1) * (1 - width_N)
    theta_N23[:, 1, 1] = height_N
    theta_N23[:, 1, 2] = drawn(-1, 1) * (1 - height_N)
    own_B23 = theta_N23[world().rank * local :][:local].to(images_BCSS.device)
    grid_BSS2 = F.affine_grid(own_B23, list(images_BCSS.shape), align_corners=False)
    crops_BCSS = F.grid_sample(images_BCSS.float(), grid_BSS2, padding_mode="border", align_corners=False)
    return crops_BCSS.to(images_BCSS.dtype)
