"""Picks in pools are as good as the plain greedy selection, of every size.

D width, H hidden neurons.
"""

import pytest
import torch
from helpers.gates import random_batches
from processes.pick_speed import exact_gains, losses_after_each_pick
from torch import Tensor

from amp.scoring.criteria import reconstruction
from amp.scoring.criteria._picks import forward_gains
from amp.scoring.criterion import Scoring
from amp.settings.score import ScoreSettings
from amp.towers import Tower

Problem = tuple[Tensor, Tensor, Tensor]


def _correlated(seed: int, hidden: int = 320, width: int = 48) -> Problem:
    """An MLP's second moments, out-projection and sensitivity: few strong directions, GELU, a bias, copies."""
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(4 * hidden, width, generator=generator) * torch.logspace(0, -2, width)
    into_DH = torch.randn(width, hidden, generator=generator) * 3 / width**0.5
    into_DH[:, hidden // 2 :] += into_DH[:, : hidden // 2]
    a_NH = torch.nn.functional.gelu(x_ND @ into_DH + 0.5 * torch.randn(hidden, generator=generator) - 0.5)
    a_NH[:, 5], a_NH[:, 200] = a_NH[:, 7], 2 * a_NH[:, 7]
    g_ND = torch.randn(4 * hidden, width, generator=generator).double() * torch.logspace(0, -2, width)
    weight_DH = torch.randn(width, hidden, generator=generator).double()
    return torch.cov(a_NH.T.double(), correction=0), weight_DH, g_ND.T @ g_ND


def _check(problem: Problem, score_H: Tensor) -> None:
    """Of every size: the loss beside the plain selection's. What is left at the end is rounding."""
    orders = [own_H.argsort(descending=True, stable=True) for own_H in (score_H, exact_gains(*problem))]
    found, exact = (losses_after_each_pick(*problem, order_H) for order_H in orders)
    assert (found <= 1.001 * exact + 1e-9 * exact[0]).all()
    falling = score_H[orders[0]]
    assert (falling[1:] < falling[:-1]).logical_or(falling[1:] == 0).all()


@pytest.mark.parametrize(("at_once", "pool"), [(64, 256), (16, 64)])
def test_the_loss_of_every_size_is_that_of_the_plain_selection(at_once: int, pool: int) -> None:
    problems = [_correlated(seed) for seed in range(3)]
    stacked = [torch.stack(own) for own in zip(*problems, strict=True)]
    told: list[int] = []
    scores = forward_gains(*stacked, at_once=at_once, pool=pool, told=told.append)
    assert sum(told) == scores.shape[1]
    for problem, score_H in zip(problems, scores, strict=True):
        _check(problem, score_H)
        alone_H = forward_gains(*(own[None] for own in problem), at_once=at_once, pool=pool)[0]
        torch.testing.assert_close(alone_H, score_H, rtol=1e-5, atol=1e-9)


def test_of_the_golden_network_too(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[Tensor], Tensor]] = []

    def pick(*problem: Tensor, **rest: object) -> Tensor:
        seen.append(([own.clone() for own in problem], forward_gains(*problem, at_once=16, pool=64)))
        return seen[-1][1]

    monkeypatch.setattr(reconstruction, "forward_gains", pick)
    reconstruction.score(Scoring(tower, random_batches(4, 32), ScoreSettings(criterion="reconstruction")))
    assert sum(len(scores) for _, scores in seen) == 5
    for problems, scores in seen:
        for *problem, score_H in zip(*problems, scores, strict=True):
            _check((problem[0], problem[1], problem[2]), score_H)
