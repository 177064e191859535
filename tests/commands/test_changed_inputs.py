"""Laws of what a run was made of: other images, another model and what is lost are named or made again, not mixed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from processes.small_run import DISTIL, KNN, PRUNE, SCORE, STEPS, inputs, results, run_in

from amp.models.folder import read_folder_config

pytestmark = pytest.mark.slow


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, with the files' times."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def _add(place: Path, split: str) -> None:
    Image.new("RGB", (20, 20), (1, 2, 3)).save(place / "images" / split / "a" / "new.png")


def _replace(place: Path, split: str) -> None:
    """Another image of the same name and size in bytes."""
    path = next(iter(sorted((place / "images" / split / "a").iterdir())))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def _edit_model(place: Path) -> None:
    config = json.loads((place / "tiny.json").read_text())
    (place / "tiny.json").write_text(json.dumps(config | {"quick_gelu": True}))


def test_no_run_writes_into_the_folder_of_a_model(place: Path) -> None:
    before = {path: path.is_file() and path.read_bytes() for path in place.rglob("*")}
    for words in (SCORE, PRUNE, DISTIL):
        for folder in ("out/pruned", "out/distilled/new"):
            ended = run_in(place, *words, "--set", f"output.dir={folder}")
            assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
            assert ended.err.startswith(f"error: output.dir: {folder} ")
    assert {path: path.is_file() and path.read_bytes() for path in place.rglob("*")} == before


CHANGES: dict[str, tuple[Callable[[Path], None], str, tuple[tuple[str, ...], ...]]] = {
    "a training image more": (lambda place: _add(place, "train"), "before the training images", (SCORE, PRUNE, DISTIL)),
    "a training image replaced": (
        lambda place: _replace(place, "train"),
        "before the training images",
        (SCORE, PRUNE, DISTIL),
    ),
    "a held-out image more": (lambda place: _add(place, "val"), "before the held-out images", (PRUNE,)),
    "a held-out image other": (lambda place: _replace(place, "val"), "before the held-out images", (PRUNE,)),
    "an image to classify more": (lambda place: _add(place, "val"), "before the images", (KNN,)),
    "another model": (
        _edit_model,
        "before the files that describe the model|model_config.quick",
        (SCORE, PRUNE, DISTIL),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("state", ["done", "killed"])
def test_what_has_changed_is_named(change: str, state: str, place: Path) -> None:
    make, said, refused = CHANGES[change]
    if state == "killed":
        (place / "out" / "prune.json").unlink()
        shutil.rmtree(place / "out" / "distilled")
    make(place)
    for words in refused:
        before = inputs(place), results(place)
        ended = run_in(place, *words)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert any(part in ended.err for part in said.split("|"))
        assert (inputs(place), results(place)) == before


def test_files_with_other_times_are_the_same_where_that_is_said(place: Path) -> None:
    for path in (place / "images").rglob("*.png"):
        os.utime(path, (1, 1))
    for words in (SCORE, PRUNE, DISTIL):
        assert run_in(place, *words).code == 2
        ended = run_in(place, *words, "--set", "data.compare_times=false")
        assert (ended.code, "already done" in ended.out) == (0, True), ended.err


def test_a_run_that_is_done_needs_its_images_no_more(place: Path) -> None:
    shutil.rmtree(place / "images")
    for words in (SCORE, PRUNE, DISTIL):
        ended = run_in(place, *words)
        assert (ended.code, "already done" in ended.out) == (0, True), ended.err
    ended = run_in(place, *SCORE, "--set", "score.seed=1")
    assert (ended.code, "images: no such folder" in ended.err) == (2, True)


@pytest.mark.parametrize(
    "lost", ["pruned/model.safetensors", "distilled/model.safetensors", "pruned", "scores.safetensors"]
)
def test_what_is_lost_is_made_again(lost: str, place: Path) -> None:
    right, path = results(place), place / "out" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for words in STEPS:
        ended = run_in(place, *words)
        assert ended.code == 0, ended.err
    assert results(place) == right


def test_one_run_under_other_paths_is_that_run(place: Path) -> None:
    (place / "linked.json").symlink_to("tiny.json")
    for words in (SCORE, PRUNE):
        spelt = ("--set", f"data.root={place}/images", "--set", "model.name=./linked.json")
        ended = run_in(place, *words, *spelt)
        assert (ended.code, "already done" in ended.out) == (0, True), ended.err
    ended = run_in(place, *DISTIL, "--set", f"student.pretrained={place}/out/pruned")
    assert (ended.code, "already done" in ended.out) == (0, True), ended.err


REFIT = ("--compensate_only", "--set", "prune.compensation=mean", "--set", "prune.num_calibration_samples=16")


def test_a_refit_is_of_the_pruning_that_is_asked_for(place: Path) -> None:
    assert run_in(place, *PRUNE, "--sweep", "params", "0.8").code == 0
    ended = run_in(place, *PRUNE, *REFIT, "--set", "prune.target.params=0.8")
    assert ended.code == 0, ended.err
    assert "wrote out/params-0.8/compensated" in ended.out
    folders = [place / "out" / "params-0.8" / name for name in ("pruned", "compensated")]
    assert read_folder_config(folders[0]).widths == read_folder_config(folders[1]).widths
    ended = run_in(place, *PRUNE, *REFIT, "--set", "prune.target.params=0.5")
    assert (ended.code, ended.err.startswith("error: --compensate_only: out/")) == (2, True)
    ended = run_in(place, *PRUNE, *REFIT, "--set", "prune.target.params=0.8", "--set", "prune.compensation=ridge")
    assert (ended.code, "compensated was made with prune.compensation" in ended.err) == (2, True)


def test_a_sweep_after_a_pruning_has_a_folder_of_its_own(place: Path) -> None:
    before = inputs(place), results(place)
    for _ in range(2):
        ended = run_in(place, *PRUNE, "--sweep", "0.05", "0.2")
        assert ended.code == 0, ended.err
        assert "this one is written to out/sweep-0.05-0.2" in ended.out
    assert (inputs(place), results(place)) == before


def test_what_somebody_put_beside_a_result_stays(place: Path) -> None:
    (place / "out" / "pruned" / "notes.txt").write_text("mine")
    (place / "elsewhere").mkdir()
    (place / "out" / "distilled").rename(place / "elsewhere" / "distilled")
    (place / "out" / "distilled").symlink_to(place / "elsewhere" / "distilled")
    (place / "out" / "prune.json").unlink()
    (place / "elsewhere" / "distilled" / "model.safetensors").unlink()
    for words in (PRUNE, DISTIL):
        assert run_in(place, *words).code == 0
    assert (place / "out" / "pruned" / "notes.txt").read_text() == "mine"
    assert (place / "elsewhere" / "distilled" / "model.safetensors").exists()


def test_a_batch_that_the_search_could_not_fill_is_refused_before_the_scoring(place: Path) -> None:
    ended = run_in(place, *SCORE, "--set", "data.batch_size=24", "--set", "output.dir=other")
    assert (ended.code, "16 images of the split 'val'" in ended.err) == (2, True)
    assert not (place / "other").exists()


def test_a_file_where_checkpoints_go_is_refused_before_the_first_step(place: Path) -> None:
    for name in ("distilled", "checkpoints"):
        shutil.rmtree(place / "out" / name)
    (place / "out" / "checkpoints").touch()
    ended = run_in(place, *DISTIL)
    assert (ended.code, "out/checkpoints: is a file; move it away" in ended.err) == (2, True)
