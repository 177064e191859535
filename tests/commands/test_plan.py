"""What a command says that it will do, before it does it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import ChainDataset

from amp.commands._plan import after_pruning, describe_distillation, describe_scoring, describe_slicing
from amp.commands._plan.evaluations import after_evaluation, describe_evaluation, time_teller
from amp.evaluation.options import (
    CompareOptions,
    EfficiencyOptions,
    KnnOptions,
    ProbeOptions,
    SpeedOptions,
    Top1Options,
    ZeroshotOptions,
)
from amp.settings.data import DataSettings
from amp.settings.distill import DistillConfig
from amp.settings.model import ModelSettings
from amp.settings.prune import PruneConfig
from amp.settings.reading.yaml_files import load_config
from amp.towers import build_tower

PAPER = "configs/prune_entropy/open_clip_g_coco_entropy.yaml"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([], "find the smallest width of each block that adds at most 0.02 nats of entropy (search: exact)"),
        (["prune.target.params=0.6"], "remove neurons to reach 0.6 times the dense parameters (allocation: search)"),
        (
            ["prune.target.flops=0.5", "prune.allocation=global", "prune.compensation=ridge"],
            "remove neurons to reach 0.5 times the dense FLOPs (allocation: global; refit: ridge)",
        ),
        (["prune.widths=[8]"], "prune to the widths in prune.widths"),
    ],
)
def test_a_pruning_says_how_widths_are_found(changes: list[str], says: str) -> None:
    config = load_config(PruneConfig, PAPER, ["prune.entropy_increase=0.02", *changes])
    lines = describe_slicing(config).splitlines()
    assert lines[1] == f"- use the scores in {config.output.dir}/scores.safetensors (criterion: entropy);"
    assert lines[2] == f"- {says};"


def test_images_that_are_not_counted_are_all() -> None:
    config = load_config(PruneConfig, PAPER, ["data.num_samples=null", "data.num_val_samples=null"])
    assert "rank the neurons on all images, in batches of " in describe_scoring(config)
    assert "measure the result on all held-out images" in describe_slicing(config)


def test_a_distillation_says_who_learns_from_whom() -> None:
    config = load_config(DistillConfig, "configs/distill/distill_open_clip_g.yaml")
    said = describe_distillation(config)
    assert said.startswith(f"{config.student.pretrained} learns from {config.teacher.name}")
    assert f"images from {config.data.root}, on CPU (" in said.splitlines()[0]


OF_MODEL = {"model": "a_model", "model_type": "timm", "pretrained": "a_tag"}
ROOTS = {"train_root": "photos/train", "val_root": "photos/val"}


@pytest.mark.parametrize(
    ("options", "title", "says"),
    [
        (
            KnnOptions(**OF_MODEL, **ROOTS),
            "class folders in photos/train and photos/val",
            "nearest training images",
        ),
        (ProbeOptions(**OF_MODEL, **ROOTS), "class folders in photos/train and photos/val", "logistic regression"),
        (Top1Options(**OF_MODEL, dataset_root="photos"), "class folders in photos", "the model's own classifier"),
        (ZeroshotOptions(**OF_MODEL, dataset="cars", dataset_root="d"), "cars in d", "text embedding is nearest"),
        (EfficiencyOptions(**OF_MODEL), "a_model (timm; a_tag)", "count parameters and FLOPs"),
        (
            SpeedOptions(**OF_MODEL, dataset="cars", dataset_root="d"),
            "cars in d",
            "clip_benchmark and this project in turn",
        ),
        (CompareOptions(folder="p", images="photos"), "p and the dense model that", "needs no labels"),
    ],
)
def test_an_evaluation_says_what_it_measures_on_what_and_what_comes_next(options: Any, title: str, says: str) -> None:
    first, *lines, last = describe_evaluation(options, "out/result.json").splitlines()
    assert title in first
    assert ", on CPU (" in first
    assert says in "".join(lines)
    assert last == "- write the numbers to out/result.json."
    assert after_evaluation(options).startswith("next:")


def test_how_long_it_takes_counts_what_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    tower = build_tower(ModelSettings(frame="timm", name="vit_tiny_patch16_224"))
    tower.visual.eval()
    images = [(torch.zeros(3, 224, 224), 0)] * 3
    time_teller(2, 0)(tower, (images, images))
    assert capsys.readouterr().out == "6 images; estimated time, from one batch: about 10 seconds\n"
    time_teller(2, 0)(tower, (ChainDataset([]),))
    assert capsys.readouterr().out == "", "a stream has no length"


def test_the_next_step_asks_for_images_that_the_pruning_did_not_see(tmp_path: Path) -> None:
    data = DataSettings(name="imagefolder", root="photos", batch_size=2)
    assert "--images DIR   # a folder of other images than photos" in after_pruning(tmp_path, data)
