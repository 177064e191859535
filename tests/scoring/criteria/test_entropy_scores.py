"""Laws of the scores by entropy.

B images, H hidden width.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.gates import masks, random_batches
from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.scoring.criterion import score
from amp.settings.data import DataSettings
from amp.settings.score import ScoreSettings
from amp.statistics.entropy import information_entropy
from amp.towers import Tower


def train_batches(tower: Tower, root: Path) -> Batches:
    settings = DataSettings(name="imagefolder", root=str(root), batch_size=32, shuffle=False, num_workers=0)
    return Batches(list_images(settings, "train"), tower.transform, settings)


def scores_by_masks(tower: Tower, batches: list[Tensor], inverse_temperature: float, absolute: bool) -> list[Tensor]:
    """dE/dm at m = 1 is the sum over tokens of a * dE/da: scores with neither a nor dE/da in sight."""
    sums = [torch.zeros(width) for width in tower.widths]
    for images_BCHW in batches:
        with masks(tower.slots, len(images_BCHW)) as ones:
            information_entropy(tower.feature(images_BCHW), inverse_temperature).backward()
        for total_H, one_B1H in zip(sums, ones, strict=True):
            gradient_BH = one_B1H.grad.squeeze(1)
            total_H += (gradient_BH.abs() if absolute else gradient_BH).mean(dim=0)
    return [total_H / len(batches) for total_H in sums]


@pytest.mark.parametrize("absolute", [True, False])
def test_scores_equal_the_gradient_of_a_mask_of_ones(tower: Tower, absolute: bool) -> None:
    batches = random_batches()
    expected = scores_by_masks(tower, batches, 15.0, absolute)
    found = score(tower, batches, ScoreSettings(absolute=absolute))
    for found_H, expected_H in zip(found, expected, strict=True):
        assert found_H.shape == (256,)
        assert found_H.dtype == torch.float32
        torch.testing.assert_close(found_H, expected_H, rtol=1e-4, atol=1e-5 * expected_H.abs().max().item())


def test_absolute_scores_bound_signed_ones_and_differ(tower: Tower) -> None:
    batches = random_batches()
    for absolute_H, signed_H in zip(
        score(tower, batches, ScoreSettings()), score(tower, batches, ScoreSettings(absolute=False)), strict=True
    ):
        assert (absolute_H >= 0).all()
        assert (signed_H < 0).any()
        # |mean| <= mean of |.|; the absolute value is taken per image, so they are not merely each other's sign.
        assert (signed_H.abs() <= absolute_H + 1e-6 * absolute_H.max()).all()
        assert (signed_H.abs() < 0.9 * absolute_H).any()


def test_golden_scores(tower: Tower, golden: dict[str, Any], golden_images: Path) -> None:
    found = score(tower, train_batches(tower, golden_images), ScoreSettings())
    for found_H, expected in zip(found, golden["score"]["scores_abs@15.0"], strict=True):
        expected_H = torch.tensor(expected)
        assert (found_H - expected_H).abs().max() <= 1e-4 * expected_H.max()


def test_scores_are_the_mean_over_batches(tower: Tower) -> None:
    batches = random_batches(3)
    apart = [score(tower, [batch], ScoreSettings()) for batch in batches]
    for block, together_H in enumerate(score(tower, batches, ScoreSettings())):
        mean_H = torch.stack([scores[block] for scores in apart]).mean(dim=0)
        torch.testing.assert_close(together_H, mean_H, rtol=1e-5, atol=1e-6 * mean_H.max().item())


@pytest.mark.parametrize("criterion", ["entropy", "kl"])
def test_scores_in_parts_are_those_of_the_whole_batch(tower: Tower, criterion: str) -> None:
    batches = random_batches(1, 12)
    whole = score(tower, batches, ScoreSettings(criterion=criterion))
    for micro_batch in (1, 5, 12):
        parts = score(tower, batches, ScoreSettings(criterion=criterion, micro_batch=micro_batch))
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-9)
    assert not any("forward" in block.__dict__ for block in tower.blocks.values())
