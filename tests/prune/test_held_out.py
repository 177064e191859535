"""Laws of the meter: the mean entropy of its batches, of the tower as it is, and what that cost."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from amp.prune.measure.held_out import EntropyMeter
from amp.prune.measure.networks import top_neurons
from amp.run.world import among
from amp.settings.model import ModelSettings
from amp.statistics.entropy import information_entropy
from amp.towers import Tower, build_tower


def test_the_meter_is_the_mean_entropy_of_its_batches(
    tower: Tower, meter: EntropyMeter, batches: Callable[[str], list[Tensor]], golden: dict[str, Any]
) -> None:
    each = [information_entropy(tower.feature(images_BCHW), 15.0).item() for images_BCHW in batches("val")]
    assert meter() == pytest.approx(math.fsum(each) / 2, abs=1e-6)
    assert meter() == pytest.approx(golden["runs"][0]["dense_entropy"], abs=1e-5)
    assert meter() == meter(), "the same batches in the same order give the same bits"
    assert each[0] != each[1]


def test_the_meter_counts_its_cost(tower: Tower, meter: EntropyMeter) -> None:
    assert meter.cost == {"block_forwards": 0, "images": 0}
    for passes in (1, 2, 3):
        meter()
        # Two batches of 32 through five blocks.
        assert meter.cost == {"block_forwards": passes * 10, "images": passes * 64}


def test_the_meter_sees_the_tower_as_it_is(tower: Tower, meter: EntropyMeter, scores: list[Tensor]) -> None:
    dense = meter()
    with tower.slots[2].narrowed(top_neurons(scores[2], 8)):
        assert meter() > dense
    assert meter() == dense


def test_the_meter_casts_images_to_the_towers_precision(golden_model: ModelSettings) -> None:
    tower = build_tower(golden_model.model_copy(update={"precision": "bf16"}))
    images_BCHW = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fp32, bf16 = (EntropyMeter(tower, [images], 15.0)() for images in (images_BCHW, images_BCHW.bfloat16()))
    assert fp32 == bf16


def test_one_process_decides_for_all(tower: Tower) -> None:
    """Every process takes the main one's value, so that rounding cannot part their ways."""
    own = {"gather": lambda rows: rows, "broadcast": lambda values: [0.125 for _ in values]}
    world: Any = SimpleNamespace(device=torch.device("cpu"), size=1, **own)
    with among(world):
        assert EntropyMeter(tower, [torch.zeros(4, 3, 32, 32)], 15.0)() == 0.125
