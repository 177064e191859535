"""Laws of the plan: what it says a search needs is what the search takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.memory import measured

from amp.pruning.measure.held_out import HeldOutEntropy
from amp.pruning.measure.store import InputStore
from amp.pruning.memory import calibration_of, plan_search, refit_bytes
from amp.pruning.refit import Compensation
from amp.pruning.refit.sequential import refit_whole
from amp.pruning.search import inputs_every
from amp.settings.model import ModelSettings
from amp.settings.prune import SearchSettings, TargetSettings
from amp.towers import Tower, build_tower
from amp.towers.mlps.inputs import input_bytes

TIMM = ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs={"depth": 4})


@pytest.mark.parametrize("name", ["open_clip", "timm"])
def test_activations_are_those_that_a_search_takes(name: str, golden_model: ModelSettings) -> None:
    settings = golden_model if name == "open_clip" else TIMM
    tower, meta = build_tower(settings), build_tower(settings, "meta")
    images_BCSS = torch.randn(8, 3, tower.image_size, tower.image_size)
    held_out = HeldOutEntropy(tower, [images_BCSS], 15.0)
    search = measured(held_out)
    planned = plan_search(meta, 8, 1, "host", None)
    weights = sum(p.numel() * 4 for p in tower.model.parameters())
    assert planned["weights"] == pytest.approx(weights, rel=0.01)
    assert planned["activations"] - images_BCSS.nbytes == pytest.approx(search, rel=0.2)


def test_compensation_takes_what_the_plan_says(golden_model: ModelSettings) -> None:
    tower, meta = build_tower(golden_model), build_tower(golden_model, "meta")
    images = list(torch.randn(4, 8, 3, tower.image_size, tower.image_size))
    orders = [torch.arange(slot.hidden_width) for slot in tower.slots]
    settings, read = SearchSettings(compensation="ridge"), tower.read_tokens
    compensation = Compensation(tower.slots, orders, tower.feature, images, settings, read=read)
    found = measured(lambda: compensation.of(len(tower.slots) - 1))
    without, planned = plan_search(meta, 8, 1, "host", None), plan_search(meta, 8, 1, "host", None, 32)
    assert planned["compensation"] == pytest.approx(found, rel=0.2)
    assert planned["total"] == without["total"] + planned["compensation"]


@pytest.mark.slow
def test_a_refit_of_the_whole_takes_what_the_plan_says(golden_model: ModelSettings) -> None:
    """With all neurons kept, beside the hidden states in the store and a batch on its way through a block."""
    tower, meta = build_tower(golden_model), build_tower(golden_model, "meta")
    images = list(torch.randn(8, 8, 3, tower.image_size, tower.image_size))
    kept, settings = [torch.arange(slot.hidden_width) for slot in tower.slots], SearchSettings(refit_steps=5)
    store = InputStore("host", torch.device("cpu"))
    found = measured(lambda: refit_whole(tower, kept, images, settings, store, None))
    planned = plan_search(meta, 8, 1, "host", None, 64, settings.refit_views, narrows=False)
    assert planned["narrowed"] == 0
    assert planned["compensation"] + planned["stored_elsewhere"] == pytest.approx(found, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, 1, 2])
def test_what_is_kept_is_what_is_measured_says(tower: Tower, golden_model: ModelSettings, every: int | None) -> None:
    images = list(torch.zeros(3, 4, 3, 32, 32))
    held_out = HeldOutEntropy(tower, images, 15.0, every=every)
    meta = build_tower(golden_model, "meta")
    for store, key in (("device", "stored"), ("host", "stored_elsewhere")):
        assert plan_search(meta, 4, 3, store, every)[key] == held_out.stored_bytes
    both = plan_search(meta, 4, 3, "auto", every, gpu_gb=0.0)
    assert (both["stored"], both["stored_elsewhere"]) == (0, held_out.stored_bytes)
    assert plan_search(meta, 4, 3, "auto", every, gpu_gb=80.0)["stored"] == held_out.stored_bytes


@pytest.mark.parametrize("settings", [SearchSettings(compensation="ridge"), SearchSettings(compensation="sequential")])
def test_what_is_kept_leaves_room_for_the_compensation_and_the_work(meta: Tower, settings: SearchSettings) -> None:
    """Two fifths of a GPU for the work, beside what a compensation takes after the inputs were stored."""
    num_images, views = calibration_of(settings)
    promised = refit_bytes(meta, num_images, views, 0.1)
    without, plan = (plan_search(meta, 64, 1000, "auto", 1, *own, gpu_gb=0.1) for own in ((), (num_images, views)))
    assert 0 < promised == plan["compensation"]
    assert plan["stored"] == max(0, without["stored"] - promised)
    assert plan["total"] - plan["activations"] <= max(0.6e8, plan["weights"] + plan["narrowed"] + promised)
    assert calibration_of(SearchSettings(compensation="none")) == (0, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_inputs_are_counted_in_the_dtype_that_blocks_are_handed(precision: Any, golden_model: ModelSettings) -> None:
    """open_clip keeps its class token in fp32 among weights in bf16."""
    settings = golden_model.model_copy(update={"precision": precision})
    tower, seen = build_tower(settings), []
    handle = tower.blocks[tower.slots[-1].name].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tower.feature(tower.blank())
    handle.remove()
    assert seen[0].dtype == tower.dtype
    assert input_bytes(tower) == input_bytes(build_tower(settings, "meta")) == seen[0].nbytes


def test_a_plan_that_does_not_fit_says_what_to_do(prune_yaml: Path, call: Callable[..., Any]) -> None:
    words = ["--config_file", prune_yaml, "--dry_run", "--gpu_memory", "0.001"]
    code, out, _ = call("main_prune.py", *words, "--set", "prune.store=device")
    assert code == 0
    assert "does not fit a GPU of 0.001 GB; prune.store: auto, host or disk" in out
    assert not (prune_yaml.parent / "out").exists()


def test_what_is_not_searched_keeps_no_inputs() -> None:
    target = TargetSettings(params=0.5)
    assert inputs_every(SearchSettings()) == SearchSettings().store_every
    assert inputs_every(SearchSettings(search="plain")) is None
    assert inputs_every(SearchSettings(widths=(1, 2))) is None
    assert inputs_every(SearchSettings(allocation="global", target=target)) is None
