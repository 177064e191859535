"""Laws of the entropy on held-out images: the mean of the batches, of the tower as it is, and what that cost."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from amp.pruning.measure.held_out import HeldOutEntropy
from amp.pruning.measure.networks import top_neurons
from amp.run.world import among
from amp.settings.model import ModelSettings
from amp.statistics.entropy import information_entropy
from amp.towers import Tower, build_tower


def test_it_is_the_mean_entropy_of_its_batches(
    tower: Tower, held_out: HeldOutEntropy, batches: Callable[[str], list[Tensor]], golden: dict[str, Any]
) -> None:
    each = [information_entropy(tower.feature(images_BCHW), 15.0).item() for images_BCHW in batches("val")]
    assert held_out() == pytest.approx(math.fsum(each) / 2, abs=1e-6)
    assert held_out() == pytest.approx(golden["runs"][0]["dense_entropy"], abs=1e-5)
    assert held_out() == held_out(), "the same batches in the same order give the same bits"
    assert each[0] != each[1]


def test_it_counts_its_cost(tower: Tower, held_out: HeldOutEntropy) -> None:
    assert held_out.cost == {"block_forwards": 0, "images": 0}
    for passes in (1, 2, 3):
        held_out()
        # Two batches of 32 through five blocks.
        assert held_out.cost == {"block_forwards": passes * 10, "images": passes * 64}


def test_it_sees_the_tower_as_it_is(tower: Tower, held_out: HeldOutEntropy, scores: list[Tensor]) -> None:
    dense = held_out()
    with tower.slots[2].narrowed(top_neurons(scores[2], 8)):
        assert held_out() > dense
    assert held_out() == dense


def test_it_casts_images_to_the_towers_precision(golden_model: ModelSettings) -> None:
    tower = build_tower(golden_model.model_copy(update={"precision": "bf16"}))
    images_BCHW = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fp32, bf16 = (HeldOutEntropy(tower, [images], 15.0)() for images in (images_BCHW, images_BCHW.bfloat16()))
    assert fp32 == bf16


def test_one_process_decides_for_all(tower: Tower) -> None:
    """Every process takes the main one's value, so that rounding cannot part their ways."""
    own = {"gather": lambda rows: rows, "broadcast": lambda values: [0.125 for _ in values]}
    world: Any = SimpleNamespace(device=torch.device("cpu"), size=1, **own)
    with among(world):
        assert HeldOutEntropy(tower, [torch.zeros(4, 3, 32, 32)], 15.0)() == 0.125
