"""Laws of sizes: what is counted is what a slice leaves, and bisection comes as close as the widths can.

H hidden width.
"""

from collections.abc import Sequence

import pytest
import torch
from helpers.mlp_layouts import ALL, H, make_block

from amp.models.sizes import count_params, neuron_params
from amp.pruning.size import counted_size, meet_size, params_of_widths
from amp.towers import Tower


@pytest.mark.parametrize("name", ALL)
def test_neuron_params_are_what_a_slice_takes_away(name: str) -> None:
    block, slot = make_block(name)
    before, per_neuron = sum(p.numel() for p in block.parameters()), neuron_params(slot)
    slot.keep(torch.arange(H - 3))
    assert before - sum(p.numel() for p in block.parameters()) == 3 * per_neuron


def test_parameters_are_those_of_the_sliced_tower(tower: Tower) -> None:
    widths = [200, 100, 50, 7, 256]
    counted = params_of_widths(tower, widths)
    share = counted_size("params", tower)(widths)
    dense = count_params(tower)
    for slot, width in zip(tower.slots, widths, strict=True):
        slot.keep(torch.arange(width))
    assert counted == count_params(tower)
    assert share == pytest.approx(counted / dense, abs=1e-12)


def of_eight(widths: Sequence[float]) -> float:
    return sum(widths) / 8


@pytest.mark.parametrize("target", [0.26, 0.5, 0.61, 0.87, 1.0])
def test_no_other_member_of_the_family_is_closer(target: float) -> None:
    met = meet_size(lambda share: [round(4 * share)] * 2, of_eight, target)
    assert abs(met.size - target) == min(abs(width / 4 - target) for width in range(5))
    assert met.size == of_eight(met.widths)


def test_where_the_least_member_is_too_large_no_other_is_tried() -> None:
    tried: list[float] = []

    def family(share: float) -> list[int]:
        tried.append(share)
        return [max(1, round(4 * share))] * 2

    assert meet_size(family, of_eight, 0.1).widths == [1, 1]
    assert tried == [0.0]
