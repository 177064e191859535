"""Laws of the ranking: the highest scores, in the neurons' own order, nested from width to width."""

import pytest
import torch

from amp.pruning.measure.networks import top_neurons


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_top_neurons_are_the_highest_scores_in_their_own_order(width: int) -> None:
    score_H = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.8, 0.2, 0.6, 0.5])
    best = sorted(range(8), key=lambda neuron: -score_H[neuron].item())[:width]
    assert top_neurons(score_H, width).tolist() == sorted(best)


def test_top_neurons_of_equal_scores_are_the_first() -> None:
    assert top_neurons(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]
    # Long enough that an unstable sort would mix equals up.
    score_H = (torch.arange(4096) % 2).float()
    assert top_neurons(score_H, 3000).tolist() == sorted([*range(1, 4096, 2), *range(0, 1904, 2)])


def test_top_neurons_are_nested() -> None:
    score_H = torch.rand(256, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    for width in range(1, 256):
        assert set(top_neurons(score_H, width).tolist()) < set(top_neurons(score_H, width + 1).tolist())


def test_signed_scores_are_ranked_highest_first() -> None:
    assert top_neurons(torch.tensor([-3.0, 0.0, 2.0, -1.0]), 2).tolist() == [1, 2]
