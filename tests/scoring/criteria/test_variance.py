"""Laws of the scores by variance.

B images, T tokens, D width, N tokens of all images, H hidden width.
"""

import torch
from conftest import refusal
from helpers.toy_blocks import Toy, toy_input

from amp.scoring.criteria.variance import VarianceScorer


def test_variance_is_that_of_all_tokens_and_survives_a_large_mean() -> None:
    toy, seen = Toy(0, 1, 2), []
    toy.blocks[1][0].fc1.bias += 1e3  # GELU hands it on
    toy.slots[1].out_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), VarianceScorer(toy.slots) as scorer:
        for x_BTD in (toy_input(), 2 * toy_input(), toy_input()[:1]):
            toy(x_BTD)
    a_NH = torch.cat([activation.flatten(0, 1) for activation in seen]).double()
    expected_H = a_NH.var(dim=0, correction=0)
    torch.testing.assert_close(scorer.scores()[1], expected_H.float(), rtol=1e-3, atol=1e-6)


def test_a_neuron_that_never_varies_ranks_last_and_a_block_of_them_is_refused() -> None:
    toy = Toy(0, 1, 2)
    toy.blocks[1][0].fc1.weight[5] = 0
    with torch.no_grad(), VarianceScorer(toy.slots) as scorer:
        toy(toy_input())
    assert scorer.scores()[1].argmin() == 5
    toy.blocks[1][0].fc1.weight.zero_()
    with torch.no_grad(), VarianceScorer(toy.slots) as scorer:
        toy(toy_input())
    assert "block blocks.1: all scores are zero" in refusal(lambda: scorer.scores())
