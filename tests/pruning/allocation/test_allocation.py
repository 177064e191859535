"""Widths from scores and a size: the size is met, the order of scores alone decides, and what cannot be is refused.

H hidden width, L blocks.
"""

from typing import Any

import pytest
import torch
from conftest import GOLDEN, built, refusal
from helpers.scripted_entropy import ScriptedEntropy, networks_of
from torch import Tensor

from amp.pruning.size import CLOSE, RelativeSize, counted_size
from amp.pruning.widths import choose_widths, prune
from amp.settings.prune import SearchSettings
from amp.towers import Tower

ALLOCATIONS = ("uniform", "global")


def random_scores(tower: Tower) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(width, generator=generator) * (1 + block) for block, width in enumerate(tower.widths)]


@pytest.fixture(scope="module")
def size() -> RelativeSize:
    return counted_size("params", built(str(GOLDEN / "tiny-clip.json"), device="meta"))


def widths_of(tower: Tower, size: RelativeSize, allocation: str, target: float, **others: Any) -> list[int]:
    settings = SearchSettings.model_validate({"allocation": allocation, "target": {"params": target}, **others})
    held_out = ScriptedEntropy(tower, pytest.fail)
    return choose_widths(networks_of(tower, random_scores(tower), held_out), settings, size)[0]


@pytest.mark.parametrize("target", [0.99, 0.8, 0.5, 0.4])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_both_meet_the_size_in_multiples(tower: Tower, size: RelativeSize, allocation: str, target: float) -> None:
    widths = widths_of(tower, size, allocation, target)
    assert abs(size(widths) / target - 1) <= CLOSE
    assert all(width % 4 == 0 for width in widths)
    assert all(width % 8 == 0 for width in widths_of(tower, size, allocation, target, width_multiple=8))
    one = widths_of(tower, size, allocation, target, width_multiple=1)
    assert abs(size(one) / target - 1) <= abs(size(widths) / target - 1) + 1e-9
    if allocation == "uniform":
        assert max(widths) - min(widths) <= 4
        assert len(set(one)) == 1


def test_uniform_keeps_one_width_where_that_meets_the_size(
    tower: Tower, size: RelativeSize, capsys: pytest.CaptureFixture[str]
) -> None:
    for width in (64, 128, 200):
        assert widths_of(tower, size, "uniform", size([width] * 5) * 1.002) == [width] * 5
    assert not capsys.readouterr().out
    between = size([64, 64, 72, 72, 72])
    assert sorted(widths_of(tower, size, "uniform", between, width_multiple=8)) == [64, 64, 72, 72, 72]
    assert "prune.width_multiple: 1 gives all blocks one share" in capsys.readouterr().out


def test_one_threshold_parts_the_kept_from_the_rest(tower: Tower, size: RelativeSize) -> None:
    widths = widths_of(tower, size, "global", 0.55, width_multiple=1)
    ranked = [score_H.sort(descending=True).values for score_H in random_scores(tower)]
    # Where one neuron is left it stays whatever its score.
    lowest_kept = min(values[width - 1] for values, width in zip(ranked, widths, strict=True) if width > 1)
    highest_gone = max(values[width] for values, width in zip(ranked, widths, strict=True) if width < 256)
    assert highest_gone <= lowest_kept
    assert widths == sorted(widths), "later blocks have the higher scores here"


def test_every_block_keeps_a_unit(tower: Tower, size: RelativeSize) -> None:
    scores = [torch.rand(256) * 1e-6, *(1 + torch.rand(256) for _ in range(4))]
    settings = SearchSettings.model_validate({"allocation": "global", "target": {"params": 0.6}, "min_width": 13})
    networks = networks_of(tower, scores, ScriptedEntropy(tower, pytest.fail))
    assert choose_widths(networks, settings, size)[0][0] == 16


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_pruning_without_search_keeps_the_top_neurons_of_its_widths(
    tower: Tower, size: RelativeSize, allocation: str
) -> None:
    held_out = ScriptedEntropy(tower, lambda widths: float(sum(widths)))
    settings = SearchSettings.model_validate({"allocation": allocation, "target": {"params": 0.6}})
    expected = widths_of(tower, size, allocation, 0.6)
    result = prune(networks_of(tower, random_scores(tower), held_out), settings, size)
    assert tower.widths == expected
    assert [len(kept) for kept in result.kept] == expected
    assert held_out.asked == [[256] * 5, expected], "the dense network and the pruned one, no probe"
    assert result.entropies == {"dense_entropy": 1280.0, "final_entropy": float(sum(expected)), "probes": []}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_size_below_the_rest_of_the_tower_is_refused(tower: Tower, size: RelativeSize, allocation: str) -> None:
    says = refusal(lambda: widths_of(tower, size, allocation, 0.1))
    assert says.startswith("prune.target.params: 0.1: out of reach; the smallest network with these settings has 0.3")
    assert says.endswith(" of the dense parameters")


@pytest.mark.parametrize("setting", [{"widths": (1,)}, {"two_sided": True}, {"total_increase": 1.0}, {"blocks": (0,)}])
def test_what_a_search_alone_has_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}: allocation: global does not search"):
        SearchSettings(allocation="global", **setting)
