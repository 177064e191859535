"""What a command reads, and lacks, is told before torch is imported, which fails here."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN, refusal
from helpers.numbered_images import write_images

from amp.settings.model import ModelSettings
from amp.towers import build_tower, library

TINY = ["--model", f"{GOLDEN}/tiny-clip.json", "--weights", f"{GOLDEN}/tiny-clip.safetensors"]
MODEL = f"{{frame: open_clip, name: {GOLDEN}/tiny-clip.json, pretrained: {GOLDEN}/tiny-clip.safetensors}}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Twelve images, an empty folder, one of other files, scores, a student's folder, and settings to change."""
    write_images(tmp_path / "twelve", *(f"{index}.png" for index in range(12)))
    for name in ("empty", "texts", "scored", "student"):
        (tmp_path / name).mkdir()
    for name in ("texts/a.txt", "scored/scores.safetensors", "student/config.json", "student/model.safetensors"):
        (tmp_path / name).write_text("{}")
    data = "data: {name: imagefolder, root: %s, batch_size: 4}\noutput: {dir: %s}\n"
    (tmp_path / "prune.yaml").write_text(f"model: {MODEL}\n{data % (tmp_path / 'twelve', tmp_path / 'out')}")
    (tmp_path / "distill.yaml").write_text(
        f"teacher: {MODEL}\nstudent: {{pretrained: {tmp_path}/student}}\n"
        f"{data % (tmp_path / 'twelve', tmp_path / 'out')}"
        "optim: {base_lr: 0.02, min_lr: 1e-4, epochs: 1, warmup_epochs: 0}\n"
    )
    return tmp_path


ROOT, BATCH, SCORED = "data.root={}/", "data.batch_size=", ("--set", "output.dir={}/scored")
SCORE, PRUNE, DISTILL = (
    ("main_score.py", "--config_file", "{}/prune.yaml", "--set"),
    ("main_prune.py", "--config_file", "{}/prune.yaml", *SCORED, "--set"),
    ("distill.py", "--config_file", "{}/distill.yaml", "--set"),
)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["main_score.py", *TINY, "--images", "{}/none"], "--images: {}/none: no such folder"),
        (["main_prune.py", *TINY, "--params", ".6", "--images", "{}/texts"], "--images: {}/texts: holds no image file"),
        ([*SCORE, ROOT + "none"], "data.root: {}/none: no such folder"),
        ([*PRUNE, ROOT + "empty"], "data.root: {}/empty: holds no image file"),
        ([*DISTILL, ROOT + "empty"], "data.root: {}/empty: holds no image file"),
        ([*SCORE, BATCH + "5"], "data.batch_size: 5 is more than the 3 images of the split 'val'"),
        ([*PRUNE, BATCH + "5"], "data.batch_size: 5 is more than the 3 images of the split 'val'"),
        ([*DISTILL, BATCH + "10"], "data.batch_size: 10 is more than the 9 images of the split 'train'"),
        ([*PRUNE, "output.dir={}/out"], "{}/out/scores.safetensors: no such file; run main_score.py"),
        ([*DISTILL, "student.pretrained={}/none"], "{}/none: no such folder; expected a pruned/"),
        (
            ["main_score.py", *TINY, "--images", "{}/twelve", "--output", "{}/twelve/o"],
            "--output: {}/twelve/o is inside",
        ),
        ([*SCORE, "output.dir={}/student"], "output.dir: {}/student is the folder of a model"),
        ([*PRUNE, "output.dir={}/twelve/out"], "output.dir: {}/twelve/out is inside {}/twelve, which holds the input"),
        ([*DISTILL, "output.dir={}/student/out"], "output.dir: {}/student/out is inside the folder of a model"),
        (["eval/eval_models.py", "{}/student", "--images", "{}/texts"], "--images: {}/texts: holds no image file"),
    ],
)
def test_what_is_missing_is_told_without_torch(at_once: Any, place: Path, words: list[str], said: str) -> None:
    before = sorted(place.rglob("*"))
    done = at_once(*(word.format(place) for word in words))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"error: {said.replace('{}', str(place))}")
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "words", [[*SCORE, ROOT + "none", *SCORED], [*PRUNE, ROOT + "none"], [*DISTILL, ROOT + "none"]]
)
def test_a_run_that_may_be_done_asks_for_no_images(at_once: Any, place: Path, words: list[str]) -> None:
    for name in ("scored/params-0.6/prune.json", "out/distilled/config.json"):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text("{}")
    assert "torch is imported" in at_once(*(word.format(place) for word in words)).stderr


@pytest.mark.parametrize(
    ("frame", "name", "pretrained"),
    [
        ("open_clip", "ViT-B-23", None),
        ("open_clip", "ViT-B-32", "opena"),
        ("eva_clip", "ViT-B-32", None),
        ("eva_clip", "EVA-CLIP-8B", "opena"),
        ("timm", "vit_tny_patch16_224", None),
        ("timm", "vit_tiny_patch16_224", "augreg"),
        ("timm", "vit_tiny_patch16_224.augreg_in21", None),
        ("dinov2", "vit_tiny_patch16_224", None),
        ("dinov2", "vit_small_patch14_dinov2", "lvd"),
    ],
)
def test_a_library_refuses_a_name_or_a_tag_before_it_builds(frame: Any, name: str, pretrained: str | None) -> None:
    settings = ModelSettings(frame=frame, name=name, pretrained=pretrained)
    said = refusal(partial(library(frame).check, settings))
    assert re.match(r"model\.(name|pretrained): ", said)
    assert said == refusal(partial(build_tower, settings))
