"""Laws of the search's options: a size, grids of widths, subsets of blocks, bounds on both sides and in all."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusal
from helpers.scripted_entropy import INCREASE, ScriptedEntropy, networks_of, search
from torch import Tensor

from amp.pruning.allocation.search import next_threshold
from amp.pruning.blocks import search_blocks
from amp.pruning.measure.journal import Journal
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.report import draw_pruning
from amp.pruning.size import CLOSE, RelativeSize, of_neurons
from amp.pruning.widths import check_widths, prune
from amp.settings.prune import SearchSettings, TargetSettings
from amp.towers import Tower

DENSE = 5 * 256


share = of_neurons([256] * 5, [1 / (1.5 * DENSE)] * 5)  # of a tower whose MLPs are two thirds of its parameters


class Slope(ScriptedEntropy):
    """An entropy that grows as widths fall, not alike in all blocks nor in all batches; counts blocks run."""

    def __init__(self, tower: Tower) -> None:
        super().__init__(tower, lambda widths: sum((b + 2) * 1e-3 * 256 / w for b, w in enumerate(widths)))
        self.num_batches, self.cost = 64, 0

    def measure(self, block: int, batches: range) -> list[float]:
        (entropy,) = super().measure(block, batches)
        self.cost += len(batches) * (5 - block)
        return [entropy * (1 + 0.05 * ((batch * 7) % 5 - 2)) for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.5, 0.6, 0.8])
@pytest.mark.parametrize("mode", ["exact", "racing"])
def test_a_size_is_met_within_half_a_hundredth_at_twice_the_cost(
    tower: Tower, scores: list[Tensor], target: float, mode: Any
) -> None:
    one = Slope(tower)
    search_blocks(networks_of(tower, scores, one), SearchSettings(), INCREASE)
    held_out = Slope(tower)
    settings = SearchSettings(search=mode, target=TargetSettings(params=target))
    result = prune(networks_of(tower, scores, held_out), settings, share)
    assert abs(share(tower.widths) / target - 1) <= CLOSE
    assert result.found is not None
    assert result.found.widths == tower.widths
    assert result.entropies["entropy_increase"] == result.found.entropy_increase != settings.entropy_increase
    assert result.entropies["share"] == share(tower.widths)
    assert held_out.cost <= 2 * one.cost


class Doubtful(ScriptedEntropy):
    """Adds the threshold on average, whatever the widths, and much noise."""

    def __init__(self, tower: Tower) -> None:
        super().__init__(tower, lambda widths: sum(INCREASE * (width < 256) for width in widths))
        self.num_batches = 400

    def measure(self, block: int, batches: range) -> list[float]:
        (entropy,) = super().measure(block, batches)
        noise = torch.randn(self.num_batches, generator=torch.Generator().manual_seed(hash(tuple(self.tower.widths))))
        noise -= noise.mean()
        return [entropy + 0.3 * float(noise[batch]) for batch in batches]


def test_a_fast_race_takes_more_batches_where_a_batch_passes_fewer_blocks(tower: Tower, scores: list[Tensor]) -> None:
    settings = SearchSettings(search="racing", preset="fast")
    found = search_blocks(networks_of(tower, scores, Doubtful(tower)), settings, INCREASE)
    most = [
        max(count for (block, *_), count in zip(found.probes, found.probe_batches, strict=True) if block == one)
        for one in range(5)
    ]
    assert most == sorted(most)
    assert 0.1 < most[0] / 400 < 0.25 < most[4] / 400 < 0.6


def test_a_throughput_is_a_share_of_the_seconds(tower: Tower, scores: list[Tensor]) -> None:
    settings = SearchSettings(target=TargetSettings(throughput=1.25))
    prune(networks_of(tower, scores, Slope(tower)), settings, share)
    assert abs(share(tower.widths) * 1.25 - 1) <= CLOSE


def test_a_size_out_of_reach_is_refused(tower: Tower, scores: list[Tensor], tmp_path: Path) -> None:
    """Before anything is measured where no network is that small; else what was measured stays, and is told."""
    settings = SearchSettings(target=TargetSettings(params=0.2))
    says = refusal(lambda: prune(networks_of(tower, scores, ScriptedEntropy(tower, pytest.fail)), settings, share))
    smallest = "the smallest network with these settings has 0.344 of the dense parameters"
    assert says == f"prune.target.params: 0.2: out of reach; {smallest}"
    path = tmp_path / "journal.jsonl"
    networks = NarrowedNetworks(tower, scores, Slope(tower), Journal(path, {"settings": {"prune": {}}}, [0.01]))
    settings = settings.model_copy(update={"width_multiple": 1})
    cliff = RelativeSize((lambda width: np.where(np.asarray(width) > 1, 0, 0.16),) * 5)
    says = refusal(lambda: prune(networks, settings, cliff))
    assert says.startswith("prune.target.params: 0.2: out of reach; the closest network with these settings has 1 ")
    assert says.endswith(f"; the measurements are kept in {path}")
    assert len(path.read_text().splitlines()) > 10
    assert tower.widths == [256] * 5


@pytest.mark.parametrize("target", [0.5, 0.6])
def test_a_size_between_two_steps_is_met_by_one_factor(tower: Tower, scores: list[Tensor], target: float) -> None:
    # 128 neurons cost nothing, 32 what any threshold from 0.1 on allows: 2/3 of the size, or 0.42.
    held_out = ScriptedEntropy(tower, lambda widths: sum(0.0 if w >= 128 else 0.1 if w >= 32 else 1e9 for w in widths))
    result = prune(networks_of(tower, scores, held_out), SearchSettings(target=TargetSettings(params=target)), share)
    assert abs(share(tower.widths) / target - 1) <= CLOSE
    assert max(tower.widths) - min(tower.widths) <= 4
    assert result.entropies["scale"] != 1
    found = result.entropies["found_widths"]
    assert set(found) <= {128, 32}, "those of the search, before the factor"
    dots = draw_pruning({**result.record, **result.sizes}).axes[0].lines[0]
    assert list(dots.get_ydata()) == found
    assert dots.get_label() == "found by the search"
    assert result.final_entropy == pytest.approx(held_out.entropy(tower.widths))


def test_a_size_above_that_of_the_smallest_threshold_is_met_by_one_factor(tower: Tower, scores: list[Tensor]) -> None:
    # An entropy that falls with the first 64 neurons of each block: a signed criterion never keeps more than 192.
    held_out = ScriptedEntropy(tower, lambda widths: sum(0.0 if w > 192 else -0.1 if w == 192 else 1e9 for w in widths))
    result = prune(networks_of(tower, scores, held_out), SearchSettings(target=TargetSettings(params=0.9)), share)
    assert abs(share(tower.widths) / 0.9 - 1) <= CLOSE
    assert result.entropies["scale"] > 1


def test_the_next_threshold_lies_between_those_around_the_target() -> None:
    assert next_threshold({1e-2: 0.9}, 0.6) == pytest.approx(8e-2)
    assert next_threshold({1e-2: 0.5}, 0.6) == pytest.approx(1e-2 / 8)
    assert next_threshold({1e-3: 0.8, 1e-1: 0.4}, 0.6) == pytest.approx(1e-2)
    assert next_threshold({1e-3: 0.8, 1e-2: 0.62, 1e-1: 0.4}, 0.6) == pytest.approx(1e-2 * 10**0.1)
    assert next_threshold({1e-3: 0.8, 1e-2: 0.8}, 0.6) == pytest.approx(8e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("multiple", "least"), [(8, 1), (16, 40), (100, 1), (64, 200), (1, 250)])
def test_widths_keep_to_their_grid(tower: Tower, scores: list[Tensor], multiple: int, least: int) -> None:
    found = search(tower, scores, Slope(tower), width_multiple=multiple, min_width=least).found
    assert found is not None
    assert all(width % multiple == 0 or width == 256 for width in tower.widths)
    assert all(width >= least for width in tower.widths)
    assert all(width % multiple == 0 and least <= width < 256 for _, width, _ in found.probes)
    if (multiple, least) == (8, 1):
        assert min(tower.widths) < 64


def test_other_blocks_keep_all(tower: Tower, scores: list[Tensor]) -> None:
    found = search(tower, scores, Slope(tower), blocks=(3, 1)).found
    assert found is not None
    assert [width < 256 for width in tower.widths] == [False, True, False, True, False]
    assert {block for block, *_ in found.probes} == {1, 3}


def test_blocks_that_are_not_there_are_refused(tower: Tower) -> None:
    says = refusal(lambda: check_widths(tower, SearchSettings(blocks=(4, 5))))
    assert says == "prune.blocks: 5: the tower has blocks 0 to 4"
    says = refusal(lambda: check_widths(tower, SearchSettings(width_multiple=1000)))
    assert says == "prune.width_multiple: 1000 is more than the 256 neurons of the widest block"


def test_a_fall_counts_too_if_asked(tower: Tower, scores: list[Tensor]) -> None:
    def entropy(widths: list[int]) -> float:
        return 1.0 - (0.5 if widths[4] < 64 else 0.005) * (widths[4] < 256)

    search(tower, scores, ScriptedEntropy(tower, entropy), blocks=(4,), two_sided=True)
    assert tower.widths[4] == 64


@pytest.mark.slow
@pytest.mark.parametrize("two_sided", [False, True])
def test_all_blocks_together_stay_within_the_total(tower: Tower, scores: list[Tensor], two_sided: bool) -> None:
    sign = -1 if two_sided else 1
    held_out = ScriptedEntropy(
        tower, lambda widths: 1.0 + sign * sum(0.9 * INCREASE * (width < 256) for width in widths)
    )
    result = search(tower, scores, held_out, total_increase=2 * INCREASE, two_sided=two_sided)
    assert tower.widths == [256, 256, 256, 4, 4]
    assert math.isclose(abs(result.final_entropy - result.dense_entropy), 1.8 * INCREASE)


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="params and flops: give only one target"):
        TargetSettings(params=0.6, flops=0.6)
    with pytest.raises(ValueError, match="widths and target: give only one of them"):
        SearchSettings(widths=(1,), target=TargetSettings(params=0.6))
