"""`amp.prune` tells what cannot be pruned, and which settings are not allowed, before it begins."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from conftest import refusal
from helpers.objects import tiny_vit
from torch import nn

import amp

pytestmark = pytest.mark.slow

IMAGES = [*torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(1))]


def adapted(model: Any) -> Any:
    model.blocks[0].mlp.fc1.lora_A = nn.Linear(32, 2)
    return model


def quantised(model: Any) -> Any:
    model.blocks[0].mlp.fc1.weight = nn.Parameter(torch.zeros(128, 32, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (adapted, "blocks.0.mlp.fc1 holds a LoRA adapter; merge it first: model = model.merge_and_unload()"),
        (quantised, "blocks.0.mlp.fc1.weight is quantised (torch.int8); give the model in bf16 or fp32"),
        (lambda model: model.to("meta"), "holds no weights (it is on the meta device); load them first"),
        (lambda model: None, "model: is a NoneType; give a model object built by open_clip, timm or transformers"),
        (
            lambda model: nn.Linear(2, 2),
            "torch.nn.modules.linear.Linear is not a model of open_clip, timm or transformers",
        ),
        (lambda model: timm.create_model("resnet18"), "is not a plain vision transformer of timm"),
    ],
)
def test_a_model_that_cannot_be_pruned_is_refused_with_the_way_out(change: Callable[[Any], Any], words: str) -> None:
    assert words in refusal(lambda: amp.prune(change(tiny_vit()), IMAGES, params=0.5))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "amp.prune: give a size: params=0.6 for 60 % of the tower's parameters"),
        (
            {"params": 60.0},
            "prune.target.params: 60 is not a share: it must be greater than 0 and less than 1; for 60 % write 0.6",
        ),
        ({"params": 0.5, "flops": 0.5}, "params and flops: give only one target"),
        ({"params": 0.5, "criterium": "entropy"}, "criterium: no argument of this name; did you mean 'criterion'?"),
        ({"params": 0.5, "criterion": "entropi"}, 'score.criterion: "entropi" is not allowed'),
        ({"params": 0.5, "prune": 3}, "amp.prune: prune: is a group of settings"),
        ({"params": 0.5, "prune": {"target": {"params": 0.4}}}, "prune.target.params: is given twice"),
        ({"widths": [1, 2]}, "prune.widths: 2 widths, but the tower has 3 blocks"),
    ],
)
def test_settings_that_are_not_allowed_are_told_before_anything_is_scored(
    said: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amp.api.pruned.score", lambda *_, **__: pytest.fail("scored"))
    assert words in refusal(lambda: amp.prune(tiny_vit(), IMAGES, **said))


def test_a_size_out_of_reach_names_the_argument_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amp.api.pruned.score", lambda *_, **__: pytest.fail("scored"))
    told = refusal(lambda: amp.prune(tiny_vit(), IMAGES, params=0.01))
    assert told.startswith("params: 0.01: out of reach; the smallest network with these settings has 0.")
