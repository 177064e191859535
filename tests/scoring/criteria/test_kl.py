"""Laws of the sampled surprisal, and of the scores by KL divergence.

B images, A anchors, D width, H hidden width.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers.gates import by_masks, random_batches
from torch import Tensor

from amp.scoring.criteria.kl import sampled_surprisal
from amp.scoring.criterion import score
from amp.settings.score import ScoreSettings
from amp.towers import Tower


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_mean_square_of_the_surprisals_gradient_is_the_curvature_of_the_kl_divergence() -> None:
    anchor_AD, removed_D = normal(4, 3).double(), normal(3, seed=1).double()
    gate = torch.ones((), dtype=torch.float64, requires_grad=True)

    def feature(gate: Tensor) -> Tensor:
        """An image's feature, to which a gated neuron adds."""
        return (normal(1, 3, seed=2).double() + gate * removed_D).float()

    def log_p(gate: Tensor) -> Tensor:
        cosine_A = F.normalize(feature(gate).double(), dim=-1) @ F.normalize(anchor_AD, dim=-1).T
        return (5 * cosine_A).log_softmax(dim=-1)[0]

    p_A = log_p(gate).exp().detach()
    fisher = torch.zeros(())
    for drawn in range(4):
        noise_1A = torch.full((1, 4), 1e-30)
        noise_1A[0, drawn] = 1 - 2**-24  # forces this draw
        surprisal = sampled_surprisal(feature(gate), anchor_AD, 5.0, noise_1A)
        assert surprisal.item() == pytest.approx(-p_A[drawn].log().item(), rel=1e-4)
        (slope,) = torch.autograd.grad(surprisal, gate)
        fisher += p_A[drawn] * slope.square()
    gone = torch.tensor(1 - 1e-2, dtype=torch.float64)
    divergence = (p_A * (p_A.log() - log_p(gone))).sum()
    assert fisher.item() / 2 * 1e-4 == pytest.approx(divergence.item(), rel=0.05)
    assert divergence > 0


def test_draws_follow_the_prediction() -> None:
    anchor_AD, feature_BD = normal(3, 4), normal(1, 4, seed=1).expand(20_000, 4).clone().requires_grad_()
    noise_BA = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    p_A = (2 * F.normalize(feature_BD[0], dim=0) @ F.normalize(anchor_AD, dim=1).T).softmax(dim=0)
    mean = sampled_surprisal(feature_BD, anchor_AD, 2.0, noise_BA) / 20_000
    assert mean.item() == pytest.approx(-(p_A * p_A.log()).sum().item(), rel=0.02)


def test_kl_scores_are_half_the_square_of_its_gates_derivatives(tower: Tower) -> None:
    (images_BCHW,) = random_batches(1)
    noise_BB = torch.rand(6, 6, generator=torch.Generator().manual_seed(3))
    dense_BD = tower.feature(images_BCHW)
    expected = by_masks(
        tower, images_BCHW, lambda: sampled_surprisal(tower.feature(images_BCHW), dense_BD, 15.0, noise_BB)
    )
    found = score(tower, [images_BCHW], ScoreSettings(criterion="kl", seed=3))
    for found_H, expected_BH in zip(found, expected, strict=True):
        torch.testing.assert_close(found_H, expected_BH.square().mean(dim=0) / 2, rtol=1e-3, atol=1e-9)
    # Where images hardly resemble each other nearly every draw is the image itself.
    settings = [ScoreSettings(criterion="kl", inverse_temperature=1.0, seed=seed) for seed in (3, 4)]
    first, other = (score(tower, [images_BCHW], own)[0] for own in settings)
    assert not torch.equal(first, other)
