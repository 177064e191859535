"""Laws of what the Taylor scores refuse: blocks that do not run just once, no gradient, values that are not finite."""

import pytest
import torch
from helpers.toy_blocks import Toy, toy_input
from torch.utils.checkpoint import checkpoint

from amp.errors import UserError
from amp.scoring.taylor import TaylorScorer


@pytest.mark.parametrize(("order", "ran"), [((0, 1, 1, 2), "ran 2 times and got 2"), ((0, 2), "ran 0 times and got 0")])
def test_a_block_that_does_not_run_exactly_once_is_named(order: tuple[int, ...], ran: str) -> None:
    toy = Toy(*order)
    with TaylorScorer(toy.slots) as scorer, pytest.raises(RuntimeError, match=rf"block blocks\.1: its MLP {ran}"):
        scorer.step(toy(toy_input()).square().mean(), 4)


def test_a_block_without_gradient_is_named() -> None:
    toy = Toy(0, 1, 2)
    with TaylorScorer(toy.slots) as scorer:
        loss = toy.blocks[0](toy_input()).square().mean()
        with torch.no_grad():
            toy.blocks[1](toy_input())
            toy.blocks[2](toy_input())
        with pytest.raises(RuntimeError, match=r"block blocks\.1: its MLP ran 1 times and got 0"):
            scorer.step(loss, 4)


def test_a_loss_without_a_graph_is_refused() -> None:
    toy = Toy(0, 1, 2)
    with TaylorScorer(toy.slots) as scorer:
        toy(toy_input())
        with pytest.raises(RuntimeError, match=r"block blocks\.0: .*got 0 gradients"):
            scorer.step(torch.tensor(1.0), 4)


def test_activation_checkpointing_is_refused() -> None:
    toy = Toy(0, 1, 2)
    with TaylorScorer(toy.slots) as scorer:
        x_BTD = toy.blocks[0](toy_input())
        x_BTD = checkpoint(toy.blocks[1], x_BTD, use_reentrant=False)
        loss = toy.blocks[2](x_BTD).square().mean()
        with pytest.raises(RuntimeError, match=r"block blocks\.1: its MLP ran 2 times"):
            scorer.step(loss, 4)


@pytest.mark.parametrize("loss", [torch.nan, torch.inf])
def test_a_criterion_that_is_not_finite_is_refused(loss: float) -> None:
    toy = Toy(0, 1, 2)
    with TaylorScorer(toy.slots) as scorer:
        scorer.step(toy(toy_input()).square().sum(), 4)
        told = r"its value is (nan|inf) on a batch \(images 5 to 8 of this process\);"
        with pytest.raises(UserError, match=told):
            scorer.step(toy(toy_input()).square().sum() * loss, 4)


def test_scores_that_are_not_finite_are_refused() -> None:
    toy = Toy(0, 1, 2)
    with TaylorScorer(toy.slots) as scorer:
        # sqrt at 0: a finite loss whose gradient is infinity * 0.
        x_BTD = toy.blocks[1](toy.blocks[0](toy_input()))
        scorer.step((x_BTD * 0).sum().sqrt() + toy.blocks[2](toy_input()).sum(), 4)
        with pytest.raises(UserError, match=r"block blocks\.0: a score is not finite"):
            scorer.scores()


def test_scores_that_are_all_zero_are_refused() -> None:
    toy = Toy(0, 1, 2)
    toy.slots[1].out_projection.weight.zero_()
    with TaylorScorer(toy.slots) as scorer:
        scorer.step(toy(toy_input()).square().mean(), 4)
        with pytest.raises(UserError, match=r"block blocks\.1: all scores are zero"):
            scorer.scores()


def test_scores_of_no_batch_are_refused() -> None:
    toy = Toy(0, 1, 2)
    with TaylorScorer(toy.slots) as scorer, pytest.raises(UserError):
        scorer.scores()
