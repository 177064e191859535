"""Widths from scores and a size: the size is met, the order of scores alone decides, and what cannot be is refused.

H hidden width, L blocks.
"""

import pytest
import torch
from conftest import refusal
from mlp_layouts import ALL, H, make_block
from torch import Tensor

from amp.allocation import global_widths, neuron_params, uniform_widths
from amp.towers import Tower


def size(tower: Tower) -> int:
    return sum(parameter.numel() for parameter in tower.visual.parameters())


def random_scores(tower: Tower) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(width, generator=generator) * (1 + block) for block, width in enumerate(tower.widths)]


@pytest.mark.parametrize("name", ALL)
def test_neuron_params_are_what_a_slice_takes_away(name: str) -> None:
    block, slot = make_block(name)
    before, per_neuron = sum(p.numel() for p in block.parameters()), neuron_params(slot)
    slot.keep(torch.arange(H - 3))
    assert before - sum(p.numel() for p in block.parameters()) == 3 * per_neuron


@pytest.mark.parametrize("share", [1.0, 0.8, 0.5, 0.4])
def test_both_meet_the_size(tower: Tower, share: float) -> None:
    dense, one = size(tower), neuron_params(tower.slots[0])
    for widths in (
        uniform_widths(tower.slots, dense, share),
        global_widths(tower.slots, random_scores(tower), dense, share),
    ):
        left = dense - sum((256 - width) * one for width in widths)
        assert abs(left - share * dense) <= one * len(widths) / 2
        assert share < 1 or widths == [256] * 5
    assert len(set(uniform_widths(tower.slots, dense, share))) == 1


def test_one_threshold_parts_the_kept_from_the_rest(tower: Tower) -> None:
    scores = random_scores(tower)
    widths = global_widths(tower.slots, scores, size(tower), 0.6)
    ranked = [score_H.sort(descending=True).values for score_H in scores]
    # Where one neuron is left it stays whatever its score.
    lowest_kept = min(values[width - 1] for values, width in zip(ranked, widths, strict=True) if width > 1)
    highest_gone = max(values[width] for values, width in zip(ranked, widths, strict=True) if width < 256)
    assert highest_gone <= lowest_kept
    assert widths == sorted(widths), "later blocks have the higher scores here"


def test_every_block_keeps_a_neuron(tower: Tower) -> None:
    scores = [torch.rand(256) * 1e-6, *(1 + torch.rand(256) for _ in range(4))]
    assert global_widths(tower.slots, scores, size(tower), 0.7)[0] == 1


def test_a_size_below_the_rest_of_the_tower_is_refused(tower: Tower) -> None:
    for call in (
        lambda: uniform_widths(tower.slots, size(tower), 0.1),
        lambda: global_widths(tower.slots, random_scores(tower), size(tower), 0.1),
    ):
        assert "size: 0.1 of the tower's parameters cannot be reached" in refusal(call)
