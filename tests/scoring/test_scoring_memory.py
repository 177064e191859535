"""Laws of the plan of a scoring: what it says a run needs is what the run takes, and the recipes fit an 80 GB GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.memory import measured

from amp.scoring import contraction
from amp.scoring.criterion import score
from amp.scoring.memory import describe_plan, plan_scoring
from amp.settings.model import ModelSettings
from amp.settings.prune import PruneConfig
from amp.settings.reading.yaml_files import load_config
from amp.settings.score import ScoreSettings
from amp.statistics.moments import group_bytes
from amp.towers import Tower, build_tower

pytestmark = pytest.mark.slow

TIMM = ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs={"depth": 4})


@pytest.mark.parametrize(
    "case",
    [
        "open_clip fp32 entropy",
        "open_clip fp32 entropy in parts",
        "open_clip fp32 variance",
        "timm fp32 entropy in parts",
        "timm bf16 entropy",  # less of a small tower is told: the CPU's kernels have copies of their own
    ],
)
def test_activations_are_those_that_a_scoring_takes(
    case: str, golden_model: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contraction, "CORE_CACHE", 1)  # a GPU's kernel lays nothing out
    name, precision, criterion, *parts = case.split(maxsplit=3)
    micro_batch = 2 if parts else None
    settings = (golden_model if name == "open_clip" else TIMM).model_copy(update={"precision": precision})
    tower, meta = build_tower(settings), build_tower(settings, "meta")
    images_BCSS = torch.randn(8, 3, tower.image_size, tower.image_size).to(tower.dtype)
    score_settings = ScoreSettings(criterion=criterion, micro_batch=micro_batch)
    found = measured(lambda: score(tower, [images_BCSS], score_settings))
    planned = plan_scoring(meta, 8, criterion, micro_batch)
    assert planned["activations"] - images_BCSS.nbytes == pytest.approx(found, rel=0.1)
    weights = sum(p.nbytes for p in tower.model.parameters())
    assert planned["weights"] == pytest.approx(weights, rel=0.01)


@pytest.mark.parametrize("model", ["open_clip_g", "open_clip_bigG", "eva_clip_E", "eva_clip_8B", "dinov2_g"])
def test_a_recipe_fits_a_gpu(model: str) -> None:
    config = load_config(PruneConfig, f"configs/prune_entropy/{model}_coco_entropy.yaml")
    assert describe_plan(config, 80.0).endswith("fits a GPU of 80 GB")


def test_a_scoring_that_does_not_fit_says_what_to_do(prune_yaml: Path, call: Callable[..., Any]) -> None:
    code, out, _ = call("main_score.py", "--config_file", prune_yaml, "--dry_run", "--gpu_memory", "0.001")
    assert code == 0
    assert "does not fit a GPU of 0.001 GB; score.micro_batch" in out
    assert not (prune_yaml.parent / "out").exists()


def test_moments_count_where_the_criterion_takes_them(meta: Tower) -> None:
    entropy, reconstruction = plan_scoring(meta, 8), plan_scoring(meta, 8, "reconstruction")
    assert reconstruction["moments"] > group_bytes([256] * 5)
    assert reconstruction["total"] == reconstruction["weights"] + reconstruction["moments"] > entropy["total"]


def test_a_smaller_gpu_holds_the_moments_of_fewer_blocks_at_once(meta: Tower) -> None:
    small, large = (plan_scoring(meta, 8, "reconstruction", gpu_gb=gpu_gb) for gpu_gb in (0.01, 80.0))
    assert small["moments"] < large["moments"]
    assert small["activations"] < large["activations"]


def test_weights_alone_are_no_passes(meta: Tower) -> None:
    weights = plan_scoring(meta, 8)["weights"]
    assert plan_scoring(meta, 8, "magnitude") == {"weights": weights, "total": weights}
