"""Widths from scores and a size: the size is met, the order of scores alone decides, and what cannot be is refused.

H hidden width, L blocks.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.scripted_entropy import ScriptedEntropy, networks_of
from torch import Tensor

from amp.models.sizes import neuron_params
from amp.pruning.allocation._by_share import widths_of_size
from amp.pruning.allocation.global_ import global_widths
from amp.pruning.allocation.uniform import uniform_widths
from amp.pruning.size import Widths
from amp.pruning.widths import prune
from amp.settings.prune import SearchSettings, TargetSettings
from amp.towers import Tower


def share_of(tower: Tower) -> Callable[[Sequence[int]], float]:
    """Widths -> what the tower has of its parameters."""
    dense, one = sum(p.numel() for p in tower.visual.parameters()), neuron_params(tower.slots[0])
    return lambda widths: 1 - sum(256 - width for width in widths) * one / dense


def random_scores(tower: Tower) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(width, generator=generator) * (1 + block) for block, width in enumerate(tower.widths)]


def both(tower: Tower) -> list[Callable[[float], Widths]]:
    return [partial(uniform_widths, tower.slots), partial(global_widths, tower.slots, random_scores(tower))]


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.99, 0.8, 0.5, 0.4])
def test_both_meet_the_size(tower: Tower, target: float) -> None:
    for widths_of in both(tower):
        assert share_of(tower)(
            widths_of_size(widths_of, share_of(tower), TargetSettings(params=target))
        ) == pytest.approx(target, rel=0.01)


def test_what_is_kept_is_a_share_of_the_neurons(tower: Tower) -> None:
    for widths_of in both(tower):
        assert widths_of(1.0) == [256] * 5
        assert widths_of(0.0) == [1] * 5
        assert sum(widths_of(0.3)) == pytest.approx(0.3 * 5 * 256, abs=2.5)
    assert len(set(uniform_widths(tower.slots, 0.3))) == 1


def test_one_threshold_parts_the_kept_from_the_rest(tower: Tower) -> None:
    scores = random_scores(tower)
    widths = global_widths(tower.slots, scores, 0.4)
    ranked = [score_H.sort(descending=True).values for score_H in scores]
    # Where one neuron is left it stays whatever its score.
    lowest_kept = min(values[width - 1] for values, width in zip(ranked, widths, strict=True) if width > 1)
    highest_gone = max(values[width] for values, width in zip(ranked, widths, strict=True) if width < 256)
    assert highest_gone <= lowest_kept
    assert widths == sorted(widths), "later blocks have the higher scores here"


def test_every_block_keeps_a_neuron(tower: Tower) -> None:
    scores = [torch.rand(256) * 1e-6, *(1 + torch.rand(256) for _ in range(4))]
    assert global_widths(tower.slots, scores, 0.5)[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("target", [TargetSettings(params=0.6), TargetSettings(throughput=1.6)])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_pruning_without_search_keeps_the_top_neurons_of_its_widths(
    tower: Tower, target: TargetSettings, allocation: str
) -> None:
    scores, share = random_scores(tower), share_of(tower)
    held_out = ScriptedEntropy(tower, lambda widths: float(sum(widths)))
    settings = SearchSettings.model_validate({"allocation": allocation, "target": target})
    widths_of = both(tower)[allocation == "global"]
    expected = widths_of_size(widths_of, share, target)
    result = prune(networks_of(tower, scores, held_out), settings, share)
    assert tower.widths == expected
    assert [len(kept) for kept in result.kept] == expected
    assert held_out.asked == [[256] * 5, expected], "the dense network and the pruned one, no probe"
    assert result.entropies == {"dense_entropy": 1280.0, "final_entropy": float(sum(expected)), "probes": []}


def test_a_size_below_the_rest_of_the_tower_is_refused(tower: Tower) -> None:
    for widths_of in both(tower):
        says = refusal(
            lambda widths_of=widths_of: widths_of_size(widths_of, share_of(tower), TargetSettings(flops=0.1))
        )
        start = "prune.target.flops: 0.1: out of reach; the smallest network, of one neuron in each MLP, has 0.3"
        assert says.startswith(start)
        assert says.endswith(" of the dense size")


@pytest.mark.parametrize("setting", [{"widths": (1,)}, {"two_sided": True}, {"total_increase": 1.0}, {"blocks": (0,)}])
def test_what_a_search_alone_has_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}: allocation: global does not search"):
        SearchSettings(allocation="global", **setting)
