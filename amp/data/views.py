"""Views of images that are at hand: each shows a part of one, so that few images say more.

B images, C channels, S side in pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.run.world import world

AREA, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # of a crop: the share of the image, and width by height


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
