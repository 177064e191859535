"""Sizes: the paper's towers, and the arithmetic of a slice."""

import pytest
import torch

from amp.config import ModelSettings
from amp.towers import build_tower
from eval.efficiency import count_flops, count_params, measure_sizes


@pytest.mark.parametrize(
    ("name", "params", "flops"), [("ViT-g-14", 1.0126e9, 0.519e12), ("ViT-bigG-14", 1.8449e9, 0.946e12)]
)
def test_towers_of_the_paper(name: str, params: float, flops: float) -> None:
    tower = build_tower(ModelSettings(frame="open_clip", name=name), "meta")
    assert count_params(tower) == pytest.approx(params, rel=2e-3)
    assert count_flops(tower) == pytest.approx(flops, rel=1e-2)


def test_a_neuron_is_worth_two_rows_of_weights(golden_model: ModelSettings) -> None:
    dense, kept = 256, [10, 256, 1, 100, 256]
    sizes = measure_sizes(golden_model, [list(range(k)) for k in kept])
    width, tokens, dropped = 64, 17, sum(dense - k for k in kept)
    assert sizes["params"]["dense"] - sizes["params"]["pruned"] == dropped * (2 * width + 1)
    assert sizes["flops"]["dense"] - sizes["flops"]["pruned"] == 2 * tokens * dropped * 2 * width


def test_flops_by_hand(golden_model: ModelSettings) -> None:
    tower = build_tower(golden_model, "meta")
    width, hidden, tokens, blocks, patch, out = 64, 256, 17, 5, 8, 48
    macs = (tokens - 1) * 3 * patch**2 * width + blocks * tokens * (4 * width**2 + 2 * width * hidden) + width * out
    assert count_flops(tower) == 2 * macs


def test_precision_changes_no_size(golden_model: ModelSettings) -> None:
    settings = golden_model.model_copy(update={"precision": "bf16"})
    whole = [list(range(256))] * 5
    assert measure_sizes(settings, whole) == measure_sizes(golden_model, whole)
    assert build_tower(settings, "meta").dtype == torch.bfloat16
