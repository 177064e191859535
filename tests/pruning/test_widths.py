"""Laws of pruning to given widths: the same as the search that found them; those that do not fit are refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.scripted_entropy import ScriptedEntropy, networks_of, search
from torch import Tensor

from amp.errors import UserError
from amp.pruning.measure.held_out import HeldOutEntropy
from amp.pruning.widths import prune
from amp.settings.model import ModelSettings
from amp.settings.prune import SearchSettings
from amp.towers import Tower, build_tower


@pytest.mark.slow
def test_pruning_to_widths_equals_the_search_that_found_them(
    tower: Tower, golden_model: ModelSettings, scores: list[Tensor], batches: Callable[[str], list[Tensor]]
) -> None:
    searched = build_tower(golden_model)
    by_search = search(searched, scores, HeldOutEntropy(searched, batches("val"), 15.0))
    held_out = HeldOutEntropy(tower, batches("val"), 15.0)
    found = prune(networks_of(tower, scores, held_out), SearchSettings(widths=tuple(searched.widths)))
    assert tower.widths == searched.widths
    assert found.kept == by_search.kept
    assert found.found is None
    assert found.dense_entropy == by_search.dense_entropy
    assert found.final_entropy == pytest.approx(by_search.final_entropy, abs=1e-6)
    assert held_out.cost == {"block_forwards": 2 * 2 * 5, "images": 2 * 64}
    same = zip(tower.model.state_dict().values(), searched.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_settings_choose_between_search_and_widths(
    tower: Tower, golden_model: ModelSettings, scores: list[Tensor]
) -> None:
    def entropy(widths: list[int]) -> float:
        return sum(0.01 * 256 / width for width in widths)

    held_out: Any = ScriptedEntropy(tower, entropy)
    found = prune(networks_of(tower, scores, held_out), SearchSettings(entropy_increase=0.05, search_steps=3))
    assert found.found is not None
    assert len(found.found.probes) == 15
    assert min(tower.widths) >= 256 // 8
    assert found.entropies == {
        "dense_entropy": entropy([256] * 5),
        "final_entropy": entropy(tower.widths),
        "probes": found.found.probes,
        "probe_batches": [1] * 15,
        "dense_batches": 1,
        "standard_errors": [None] * 5,
        "entropy_increase": 0.05,
        "scale": 1.0,
    }
    other = build_tower(golden_model)
    held_out = ScriptedEntropy(other, entropy)
    found = prune(networks_of(other, scores, held_out), SearchSettings(widths=(1, 2, 3, 4, 256)))
    assert other.widths == [1, 2, 3, 4, 256]
    assert found.entropies == {
        "dense_entropy": entropy([256] * 5),
        "final_entropy": entropy(other.widths),
        "probes": [],
    }


@pytest.mark.parametrize(
    ("widths", "says"),
    [
        ([64, 64, 64, 64], "prune.widths: 4 widths, but the tower has 5 blocks"),
        ([64, 64, 64, 64, 64, 64], "prune.widths: 6 widths, but the tower has 5 blocks"),
        ([64, 64, 257, 64, 64], "prune.widths: 257 for block 2, which has only 256 neurons"),
    ],
)
def test_widths_that_do_not_fit_are_refused_before_anything_is_sliced(
    tower: Tower, scores: list[Tensor], widths: list[int], says: str
) -> None:
    held_out: Any = ScriptedEntropy(tower, lambda widths: 0.0)
    with pytest.raises(UserError) as caught:
        prune(networks_of(tower, scores, held_out), SearchSettings(widths=tuple(widths)))
    assert str(caught.value) == says
    assert tower.widths == [256] * 5
    assert held_out.asked == []


@pytest.mark.parametrize("width", [1, 256])
def test_the_least_and_the_most_width_work(
    tower: Tower, scores: list[Tensor], held_out: HeldOutEntropy, width: int
) -> None:
    found = prune(networks_of(tower, scores, held_out), SearchSettings(widths=(width,) * 5))
    assert tower.widths == [width] * 5
    assert math.isfinite(found.final_entropy)
    assert (found.final_entropy == found.dense_entropy) == (width == 256)
