"""Laws of the plan: what it says a run needs is what the run takes, and the recipes' plans fit an 80 GB GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from amp.prune.measure.held_out import EntropyMeter
from amp.prune.memory import describe_plan, plan_search
from amp.prune.refit import Compensation
from amp.score.memory import plan_scoring
from amp.score.scoring import score_entropy
from amp.settings.load import load_config
from amp.settings.model import ModelSettings
from amp.settings.prune import PruneConfig, SearchSettings, TargetSettings
from amp.statistics.moments import group_bytes, groups
from amp.towers import Tower, build_tower

TIMM = ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs={"depth": 4})


def measured(run: Callable[[], Any]) -> int:
    """The most bytes that `run` held at once on the CPU, by its allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    now = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("name", ["open_clip", "timm"])
def test_activations_are_those_that_a_run_takes(name: str, golden_model: ModelSettings) -> None:
    settings = golden_model if name == "open_clip" else TIMM
    tower, meta = build_tower(settings), build_tower(settings, "meta")
    images_BCSS = torch.randn(8, 3, tower.image_size, tower.image_size)
    scoring = measured(lambda: score_entropy(tower, [images_BCSS], 15.0, True))
    planned = plan_scoring(meta, 8)
    assert planned["activations"] - images_BCSS.nbytes == pytest.approx(scoring, rel=0.2)
    weights = sum(p.numel() * 4 for p in tower.model.parameters())
    assert planned["weights"] == pytest.approx(weights, rel=0.01)
    meter = EntropyMeter(tower, [images_BCSS], 15.0)
    search = measured(meter)
    assert plan_search(meta, 8, 1, "host", None)["activations"] - images_BCSS.nbytes == pytest.approx(search, rel=0.2)


def test_compensation_takes_what_the_plan_says(golden_model: ModelSettings) -> None:
    tower, meta = build_tower(golden_model), build_tower(golden_model, "meta")
    images = list(torch.randn(4, 8, 3, tower.image_size, tower.image_size))
    orders = [torch.arange(slot.hidden_width) for slot in tower.slots]
    compensation = Compensation(tower.slots, orders, tower.feature, images, 1e-3)
    found = measured(lambda: compensation.of(len(tower.slots) - 1))
    without, planned = plan_search(meta, 8, 1, "host", None), plan_search(meta, 8, 1, "host", None, 32)
    assert planned["compensation"] == pytest.approx(found, rel=0.2)
    assert planned["total"] == without["total"] + planned["compensation"]


@pytest.mark.parametrize("every", [None, 1, 2])
def test_what_is_kept_is_what_the_meter_says(tower: Tower, golden_model: ModelSettings, every: int | None) -> None:
    images = list(torch.zeros(3, 4, 3, 32, 32))
    meter = EntropyMeter(tower, images, 15.0, every=every)
    meta = build_tower(golden_model, "meta")
    for store, key in (("device", "stored"), ("host", "stored_elsewhere")):
        assert plan_search(meta, 4, 3, store, every)[key] == meter.stored_bytes


@pytest.mark.parametrize("model", ["open_clip_g", "open_clip_bigG", "eva_clip_E", "eva_clip_8B", "dinov2_g"])
def test_a_recipe_fits_a_gpu(model: str) -> None:
    config = load_config(PruneConfig, f"configs/prune_entropy/{model}_coco_entropy.yaml")
    assert describe_plan(config, "scoring", 80.0).endswith("fits a GPU of 80 GB")


def test_a_plan_that_does_not_fit_says_what_to_do(prune_yaml: Path, call: Callable[..., Any]) -> None:
    words = ["--config_file", prune_yaml, "--dry_run", "--gpu_memory", "0.001"]
    code, out, _ = call("main_score.py", *words)
    assert code == 0
    assert "does not fit a GPU of 0.001 GB; score.micro_batch" in out
    code, out, _ = call("main_prune.py", *words, "--set", "prune.store=device")
    assert code == 0
    assert "does not fit a GPU of 0.001 GB; prune.store: host or disk" in out
    assert not (prune_yaml.parent / "out").exists()


def test_scores_in_parts_are_those_of_the_whole_batch(tower: Tower, batches: Callable[[str], list[Tensor]]) -> None:
    whole = score_entropy(tower, batches("train"), 15.0, True)
    for micro_batch in (1, 12, 32):
        parts = score_entropy(tower, batches("train"), 15.0, True, micro_batch)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-9)


def test_moments_count_where_the_criterion_takes_them(golden_model: ModelSettings) -> None:
    meta = build_tower(golden_model, "meta")
    entropy, reconstruction = plan_scoring(meta, 8), plan_scoring(meta, 8, "reconstruction")
    assert reconstruction["moments"] > group_bytes([256] * 5)
    assert reconstruction["total"] == reconstruction["weights"] + reconstruction["moments"] > entropy["total"]


def test_what_is_not_searched_keeps_no_inputs() -> None:
    target = TargetSettings(params=0.5)
    assert SearchSettings().inputs_every == SearchSettings().store_every
    assert SearchSettings(search="plain").inputs_every is None
    assert SearchSettings(widths=(1, 2)).inputs_every is None
    assert SearchSettings(allocation="global", target=target).inputs_every is None


def test_groups_hold_every_block_once() -> None:
    widths = [1000, 4000, 2000, 8000, 100]
    for gigabytes in (0.0, 0.1, 1.0, 100.0):
        found = groups(widths, gigabytes)
        assert [block for group in found for block in group] == list(range(5))
        assert all(len(g) == 1 or group_bytes([widths[b] for b in g]) <= gigabytes * 1e9 for g in found)
