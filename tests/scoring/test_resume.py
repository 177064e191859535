"""Laws of a scoring that is killed: the same command goes on, and ends in the uninterrupted run's bytes."""

import itertools
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.gates import random_batches
from processes.score_many import score_many
from processes.start import start_process

from amp.errors import StoppedError
from amp.scoring.criteria import reconstruction
from amp.scoring.criterion import Scoring
from amp.scoring.scores_file import load_scores
from amp.scoring.taylor import TaylorScorer
from amp.settings.score import ScoreSettings
from amp.statistics import moments, saved_sums
from amp.statistics.saved_sums import SavedSums
from amp.towers import Tower

Call = Callable[..., tuple[int, str, str]]
Launch = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ["--set", "data.batch_size=4", "--set", "score.save_every=1"]
CRITERIA = {
    "entropy": [],
    "signed": ["score.absolute=false"],
    "in parts": ["score.micro_batch=3"],
    "kl": ["score.criterion=kl"],
    "variance": ["score.criterion=variance"],
    "reconstruction": ["score.criterion=reconstruction"],
}


def stop_after(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Ctrl-C when `last` batches are done."""
    step = SavedSums.step

    def step_or_stop(self: SavedSums, scorer: Any) -> None:
        if self.num_batches == last:
            raise KeyboardInterrupt
        step(self, scorer)

    monkeypatch.setattr(SavedSums, "step", step_or_stop)


def stop_at_call(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C after that many batches, whatever pass they are of."""
    step, steps = SavedSums.step, itertools.count(1)

    def step_or_stop(self: SavedSums, scorer: Any) -> None:
        if next(steps) > number:
            raise KeyboardInterrupt
        step(self, scorer)

    monkeypatch.setattr(SavedSums, "step", step_or_stop)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", CRITERIA)
def test_interrupted_after_any_batch_it_ends_in_the_same_bytes(
    criterion: str, prune_yaml: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config_file", prune_yaml, "--set", "data.batch_size=4", "--set", "score.save_every=3"]
    words += [word for setting in CRITERIA[criterion] for word in ("--set", setting)]
    assert call("main_score.py", *words, "--set", f"output.dir={tmp_path}/whole")[0] == 0
    for last in (2, 8, 13):
        with monkeypatch.context() as patch:
            stop_after(patch, last)
            assert call("main_score.py", *words)[0] == 130
    code, console, _ = call("main_score.py", *words)
    assert (code, "resuming after batch 12 of 16" in console) == (0, True)
    whole, resumed = tmp_path / "whole", tmp_path / "out"
    assert [path.name for path in resumed.iterdir()] == ["scores.safetensors"]
    assert (resumed / "scores.safetensors").read_bytes() == (whole / "scores.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [16.0, 0.0])
def test_a_scoring_of_several_passes_goes_on_in_any_of_them(
    tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float
) -> None:
    """Of a reconstruction, also where its moments are so large that they are not worth keeping."""
    monkeypatch.setattr(moments, "GIGABYTES", gigabytes)
    batches, settings = random_batches(5, 12), ScoreSettings(criterion="reconstruction")
    expected = reconstruction.score(Scoring(tower, batches, settings))
    path = tmp_path / "scores_unfinished.safetensors"
    for rate in (saved_sums.BYTES_A_SECOND, 1.0):
        monkeypatch.setattr(saved_sums, "BYTES_A_SECOND", rate)
        monkeypatch.setattr(saved_sums, "SMALL_BYTES", 2.0**20 if rate == 1.0 else 2.0**26)
        for last in itertools.count(3):
            saved = SavedSums(path, {"settings": {}}, 2)
            try:
                with monkeypatch.context() as patch:
                    stop_at_call(patch, last)
                    found = reconstruction.score(Scoring(tower, batches, settings, saved))
                break
            except KeyboardInterrupt:
                assert path.exists() or last < 6
        assert all(map(torch.equal, found, expected))
        path.unlink()


@pytest.mark.slow
def test_other_settings_are_refused_by_name(
    prune_yaml: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config_file", prune_yaml, *SMALL]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert call("main_score.py", *words)[0] == 130
    path = tmp_path / "out" / "scores_unfinished.safetensors"
    before = path.read_bytes()
    code, _, err = call("main_score.py", *words, "--set", "score.inverse_temperature=20.0")
    assert code == 2
    assert "scores_unfinished.safetensors was made with score.inverse_temperature = 15.0, but this run has 20.0" in err
    assert path.read_bytes() == before
    assert call("main_score.py", *words, "--set", "score.save_every=7")[0] == 0


def test_what_no_longer_helps_is_gone(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    """Killed after the scores were written, before the sums were removed."""
    words = ["--config_file", prune_yaml]
    assert call("main_score.py", *words)[0] == 0
    path = tmp_path / "out" / "scores_unfinished.safetensors"
    path.touch()
    assert call("main_score.py", *words)[0] == 0
    assert not path.exists()


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    words = ["--config_file", str(prune_yaml), *SMALL]
    assert call("main_score.py", *words, "--set", f"output.dir={tmp_path}/whole")[0] == 0
    unfinished = tmp_path / "out" / "scores_unfinished.safetensors"
    moments = random.Random(0)
    before = None
    for _ in range(2):
        running = start_process(["main_score.py", *words])
        while running.is_alive() and (unfinished.stat().st_mtime_ns if unfinished.exists() else None) == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        running.kill()
        running.join()
        assert running.exitcode == -signal.SIGKILL
        before = unfinished.stat().st_mtime_ns
    assert call("main_score.py", *words)[0] == 0
    scores = [tmp_path / name / "scores.safetensors" for name in ("whole", "out")]
    assert scores[0].read_bytes() == scores[1].read_bytes()


def test_two_processes_equal_one_and_go_on_when_one_of_them_is_killed(
    prune_yaml: Path, golden_images: Path, tmp_path: Path, launch: Launch, call: Call
) -> None:
    (tmp_path / "two").mkdir()
    words = ["main_score.py", "--config_file", prune_yaml, *SMALL]
    others = launch(2, "tests/processes/score_many.py", golden_images, tmp_path / "two")
    assert others.returncode == 0, others.stderr
    whole = launch(2, *words, "--set", f"output.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    killed = launch(2, "tests/processes/killed_at.py", "amp.statistics.saved_sums.SavedSums.step", 9, *words)
    assert killed.returncode == 1
    scores = [tmp_path / name / "scores.safetensors" for name in ("whole", "out")]
    assert [path.exists() for path in scores] == [True, False], killed.stderr
    code, _, err = call(*words)
    assert (code, "was made with processes = 2, but this run has 1" in err) == (2, True)
    resumed = launch(2, *words)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after batch " in resumed.stdout + resumed.stderr
    assert scores[0].read_bytes() == scores[1].read_bytes()
    score_many(str(golden_images), tmp_path / "one")
    for criterion in ("cross_entropy", "labels", "kl", "reconstruction", "variance"):
        one, two = (load_scores(tmp_path / name / f"{criterion}.safetensors")[0] for name in ("one", "two"))
        for one_H, two_H in zip(one, two, strict=True):
            torch.testing.assert_close(one_H, two_H, rtol=1e-4, atol=1e-5 * one_H.max().item())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores_unfinished.safetensors"
    path.write_bytes(b"no tensors")
    says = refusal(lambda: SavedSums(path, {"settings": {}}, 1))
    assert says.startswith(f"{path}: cannot be read")
    assert says.endswith("delete it to score again")


def test_where_nothing_can_be_written_it_stops_with_one_line(tower: Tower, tmp_path: Path) -> None:
    scorer = TaylorScorer(tower.slots)
    state = SavedSums(tmp_path / "a folder" / "sums.safetensors", {"settings": {}}, 2)
    state.step(scorer)
    (tmp_path / "a folder").touch()
    with pytest.raises(StoppedError, match=r"sums\..*safetensors cannot be written"):
        state.step(scorer)


def test_sums_and_counts_come_back(tower: Tower, tmp_path: Path) -> None:
    scorer, other = TaylorScorer(tower.slots), TaylorScorer(tower.slots)
    for number, total in enumerate(scorer.sums):
        total += number + 1
    state = SavedSums(tmp_path / "sums.safetensors", {"settings": {}}, 2)
    state.step(scorer)
    assert not (tmp_path / "sums.safetensors").exists()
    state.step(scorer)
    again = SavedSums(tmp_path / "sums.safetensors", {"settings": {}}, 2)
    assert again.num_batches == 2
    again.restore(other)
    assert all(torch.equal(a, b) for a, b in zip(scorer.sums, other.sums, strict=True))
    assert other.num_images == 6
