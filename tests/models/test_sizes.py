"""Sizes: the paper's towers, and the arithmetic of a slice. Speed: rounds in turn, and their spread."""

from functools import partial

import pytest
import torch

from amp.models.sizes import count_by_width, count_flops, count_mlp_params, count_params, measure_widths
from amp.models.throughput import quartiles, rebuild, rounds_of
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "params", "mlp_share", "flops", "all_flops"),
    [
        ("ViT-g-14", 1.0126e9, 0.684, 0.519e12, 0.534e12),
        ("ViT-bigG-14", 1.8449e9, 0.710, 0.946e12, 0.968e12),
    ],
)
def test_towers_of_the_paper(name: str, params: float, mlp_share: float, flops: float, all_flops: float) -> None:
    tower = build_tower(ModelSettings(frame="open_clip", name=name), "meta")
    assert count_params(tower) == pytest.approx(params, rel=1e-4)
    assert count_mlp_params(tower) / count_params(tower) == pytest.approx(mlp_share, abs=5e-4)
    assert count_flops(tower) == pytest.approx(flops, rel=2e-3)
    assert count_flops(tower, attention_products=True) == pytest.approx(all_flops, rel=2e-3)


def test_a_neuron_is_worth_two_rows_of_weights(golden_model: ModelSettings) -> None:
    dense, kept = 256, [10, 256, 1, 100, 256]
    tower = build_tower(golden_model, "meta")
    whole, pruned = measure_widths(tower, [dense] * 5), measure_widths(tower, kept)
    width, tokens, dropped = 64, 17, sum(dense - k for k in kept)
    assert whole["params"] - pruned["params"] == dropped * (2 * width + 1)
    assert whole["flops"] - pruned["flops"] == 2 * tokens * dropped * 2 * width
    assert tower.widths == [dense] * 5


@pytest.mark.parametrize("name", ["ViT-B-32", "EVA02-B-16", "ViTamin-S"])
def test_sizes_by_arithmetic_are_those_that_are_counted(name: str) -> None:
    tower = build_tower(ModelSettings(frame="open_clip", name=name), "meta")
    widths = [max(1, width * (block + 1) // (len(tower.slots) + 3)) for block, width in enumerate(tower.widths)]
    sizes = count_by_width(tower)
    assert sizes(widths) == measure_widths(tower, widths)
    assert sizes(tower.widths) == measure_widths(tower, tower.widths)


def test_flops_by_hand(golden_model: ModelSettings) -> None:
    tower = build_tower(golden_model, "meta")
    width, hidden, tokens, blocks, patch, out = 64, 256, 17, 5, 8, 48
    macs = (tokens - 1) * 3 * patch**2 * width + blocks * tokens * (4 * width**2 + 2 * width * hidden) + width * out
    assert count_flops(tower) == 2 * macs
    assert count_flops(tower, attention_products=True) == 2 * (macs + blocks * 2 * tokens**2 * width)
    assert count_mlp_params(tower) == blocks * (2 * width * hidden + hidden + width)


def test_precision_changes_no_size(golden_model: ModelSettings) -> None:
    settings = golden_model.model_copy(update={"precision": "bf16"})
    low, full = build_tower(settings, "meta"), build_tower(golden_model, "meta")
    assert measure_widths(low, full.widths) == measure_widths(full, full.widths)
    assert low.dtype == torch.bfloat16


def test_rebuilding_gives_the_shapes_of_the_trained_one(tower: Tower, kept: list[list[int]]) -> None:
    for widths, others in ((None, [256] * 5), (tower.widths, tower.widths)):
        rebuilt = rebuild(tower.base, "cpu", widths)
        assert rebuilt.widths == others
        assert rebuilt.visual(torch.zeros(2, 3, 32, 32)).shape == (2, 48)
    shapes = {key: value.shape for key, value in tower.visual.state_dict().items()}
    assert {key: value.shape for key, value in rebuilt.model.state_dict().items()} == shapes


def test_rounds_run_each_in_turn() -> None:
    order: list[str] = []
    runs = {name: partial(order.append, name) for name in "ab"}
    seconds = iter(range(100))
    rounds = list(rounds_of(runs, torch.device("cpu"), most=3, clock=lambda: float(next(seconds))))
    assert order == ["a", "b"] * 3
    assert rounds == [{"a": 1.0, "b": 1.0}] * 3
    assert quartiles([1.0, 2.0, 4.0]) == {"median": 2.0, "lower_quartile": 1.5, "upper_quartile": 3.0}
