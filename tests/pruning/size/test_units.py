"""Laws of units: widths of a grid that meet a size at the least loss, one order for all sizes.

H hidden width.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from amp.pruning.size import CLOSE, Grid, RelativeSize, of_neurons, settle
from amp.settings.prune import SearchSettings

TARGETS = np.linspace(0.995, 0.4, 20).tolist()


def grid_of(dense: list[int], **settings: object) -> Grid:
    return Grid(dense, SearchSettings.model_validate({"allocation": "global", "target": {"params": 0.5}, **settings}))


def scores_of(dense: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(width, generator=generator) ** 3 * (1 + 3 * (block % 4)) for block, width in enumerate(dense)]


# ViT-B, ViT-g, a gated tower whose widths are no multiples, blocks of two widths: (hidden, blocks, MLPs' share).
TOWERS = [([3072] * 12, 0.66), ([6144] * 40, 0.69), ([2730] * 24, 0.67), ([1536] * 2 + [3072] * 4, 0.6)]


@pytest.mark.parametrize(("dense", "part"), TOWERS)
def test_multiples_meet_every_size_and_smaller_networks_are_parts_of_larger_ones(dense: list[int], part: float) -> None:
    size_of = of_neurons(dense, [part / sum(dense)] * len(dense))
    grid, scores = grid_of(dense), scores_of(dense)
    before = dense
    for target in TARGETS:
        widths = settle(grid, scores, size_of, target)
        assert abs(size_of(widths) / target - 1) <= CLOSE
        assert all(width % 8 == 0 or width == whole for width, whole in zip(widths, dense, strict=True))
        assert all(width <= own for width, own in zip(widths, before, strict=True))
        before = widths


def test_heads_stay_where_they_would_miss_the_size() -> None:
    """As of a ViT-Ti: a head has 0.9 % of the parameters, eight neurons 0.06 %."""
    dense, cost = [3, 768] * 12, [0.0091, 0.34 / 9216 * 2] * 12
    grid = grid_of(dense[1::2])
    grid.levels = [own for mlp in grid.levels for own in ([1, 2, 3], mlp)]
    scores = [score * (200 if width == 3 else 1) for width, score in zip(dense, scores_of(dense), strict=True)]
    size_of = of_neurons(dense, cost)
    some = settle(grid, scores, size_of, 0.5)
    assert any(heads < 3 for heads in some[::2])
    assert all(abs(size_of(settle(grid, scores, size_of, target)) / target - 1) <= CLOSE for target in TARGETS)


@pytest.mark.parametrize("power", [1.0, 0.5], ids=["counted", "timed"])
def test_no_other_widths_lose_less(power: float) -> None:
    """Against all widths there are; also where what a neuron saves depends on how wide its block still is."""
    dense = [8, 16, 12]
    savings = [lambda width, whole=whole: (1 - (width / whole) ** power) * whole / 50 for whole in dense]
    size_of, grid = RelativeSize(tuple(savings)), grid_of(dense, width_multiple=2)
    every = [list(widths) for widths in itertools.product(*grid.levels)]
    sizes = np.array([size_of(widths) for widths in every])
    for seed in range(5):
        scores = scores_of(dense, seed)
        lost = [
            np.concatenate([score_H.sort().values.double().cumsum(0).flip(0), torch.zeros(1)]) for score_H in scores
        ]
        losses = np.array([sum(own[w] for own, w in zip(lost, widths, strict=True)) for widths in every])
        for price in np.geomspace(0.1, 100, 60):  # The best networks at any exchange rate of loss for size.
            best = int((losses + price * sizes).argmin())
            assert settle(grid, scores, size_of, sizes[best]) == every[best]
        for target in (0.9, 0.7, 0.5, 0.4) if power == 1 else ():
            own = every.index(settle(grid, scores, size_of, target))
            assert losses[own] == pytest.approx(losses[sizes <= sizes[own] + 1e-12].min())


def test_a_unit_of_a_costly_block_goes_first_where_the_scores_are_the_same() -> None:
    scores = [torch.ones(64), torch.ones(64)]
    widths = settle(grid_of([64, 64], width_multiple=8), scores, of_neurons([64, 64], [0.001, 0.002]), 0.93)
    assert widths == [64, 32]


def test_grids_keep_small_towers_free_and_other_blocks_whole() -> None:
    assert [grid_of([width]).multiple for width in (3072, 512, 384, 256, 128, 64, 10)] == [8, 8, 4, 4, 2, 1, 1]
    assert grid_of([20, 5], width_multiple=8).levels == [[8, 16, 20], [5]]
    assert grid_of([32, 32], width_multiple=8, min_width=9).levels == [[16, 24, 32]] * 2
    settings = SearchSettings.model_validate({"blocks": (1,), "width_multiple": 8})
    assert Grid([16, 16], settings).levels == [[16], [8, 16]]


def test_the_published_search_alone_keeps_its_own_grid() -> None:
    def multiple(**settings: object) -> int:
        return SearchSettings.model_validate(settings).multiple_in(3072)

    assert [multiple(search=search) for search in ("exact", "plain", "racing")] == [1, 1, 8]
    assert [multiple(search="exact", target={key: 0.5}) for key in ("params", "flops", "latency")] == [8, 8, 8]
    assert [multiple(allocation=one, target={"params": 0.5}) for one in ("global", "uniform")] == [8, 8]
    assert [multiple(allocation="global", width_multiple=number) for number in (1, 3)] == [1, 3]
    assert SearchSettings().decisive()["width_multiple"] == 1, "as recorded before the setting could be left open"
