"""Runs that end early: whatever ends them, the same command goes on and ends in the uninterrupted run's bytes."""

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes.start import run_processes, start_process
from safetensors.torch import load_file

from amp.distillation import Trainer

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


def _run(call: Call, yaml: Path, *words: str) -> tuple[int, str, str]:
    return call("distill.py", "--config_file", yaml, *(part for word in words for part in ("--set", word)))


def _same_files(home: Path) -> None:
    for file in ("log.jsonl", "distilled/model.safetensors", "distilled/config.json"):
        assert (home / "out" / file).read_bytes() == (home / "whole" / file).read_bytes(), file


def _before_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    step = Trainer.train_step

    def acted_before(self: Trainer, *given: Any, **named: Any) -> Any:
        if self.step == number:
            act()
        return step(self, *given, **named)

    monkeypatch.setattr(Trainer, "train_step", acted_before)


def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    distill_yaml: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert _run(call, distill_yaml, f"output.dir={tmp_path}/whole")[0] == 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with monkeypatch.context() as patched:
            _before_step(patched, 5, partial(os.kill, os.getpid(), number))
            ended, _, err = _run(call, distill_yaml)
        assert ended == code
        (line,) = (line for line in err.splitlines() if line.startswith("stopped"))
        assert (
            f"after step 6 of 20; run the same command to continue from {tmp_path}/out/checkpoints/step_0000006" in line
        )
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
        assert _run(call, distill_yaml)[0] == 0
        _same_files(tmp_path)
        shutil.rmtree(tmp_path / "out")


def test_killed_at_any_moment_it_ends_in_the_same_bytes(
    distill_yaml: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice between its steps; and while it writes the result, after which only the writing is done again."""
    words = ["output.save_every=1", "data.shuffle=true", "data.augment=clip"]
    assert _run(call, distill_yaml, *words, f"output.dir={tmp_path}/whole")[0] == 0
    command = ["distill.py", "--config_file", str(distill_yaml), *(f"--set={word}" for word in words)]
    checkpoints, distilled = tmp_path / "out" / "checkpoints", tmp_path / "out" / "distilled"
    moments = random.Random(0)
    for _ in range(2):
        before = max(checkpoints.glob("step_*"), default=None)
        running = start_process(command)
        while running.exitcode is None and max(checkpoints.glob("step_*"), default=None) == before:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        running.kill()
        running.join()
        assert running.exitcode == -signal.SIGKILL
        for path in checkpoints.glob("step_*/*.safetensors"):
            assert load_file(path)
    while_writing = ["tests/processes/ended_at.py", "amp.models.folder:write_json", "1", "0", "kill"]
    assert run_processes(1, [*while_writing, *command]).returncode == -signal.SIGKILL
    assert not distilled.exists()
    assert list((tmp_path / "out").glob(".distilled.*.partial"))
    monkeypatch.setattr(Trainer, "train_step", pytest.fail)
    code, out, err = _run(call, distill_yaml, *words)
    assert (code, "resuming after step 20 of 20" in out) == (0, True), err
    _same_files(tmp_path)
    assert not list((tmp_path / "out").glob(".*"))
    assert [p.name for p in sorted(checkpoints.iterdir())] == ["step_0000019", "step_0000020"]


@pytest.fixture
def _files_of_any_size() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("_files_of_any_size")
def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_whole(
    distill_yaml: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def fill() -> None:
        while not (tmp_path / "out" / "checkpoints" / "step_0000003").exists():
            time.sleep(0.01)  # It is written beside the steps.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    with monkeypatch.context() as patched:
        _before_step(patched, 4, fill)
        code, _, err = _run(call, distill_yaml, "output.save_every=3")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert code == 1
    (line,) = (line for line in err.splitlines() if line.startswith("stopped"))
    folder = tmp_path / "out" / "checkpoints"
    assert f"{folder}/step_0000006 cannot be written (File too large)" in line
    assert f"last good checkpoint: {folder}/step_0000003" in line
    assert "Traceback" not in err
    assert [path.name for path in folder.iterdir()] == ["step_0000003"]
    code, out, _ = _run(call, distill_yaml, "output.save_every=3")
    assert (code, "resuming after step 3 of 20" in out) == (0, True)


@pytest.mark.usefixtures("_files_of_any_size")
def test_a_full_disk_at_the_last_write_is_one_line(
    distill_yaml: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    weights = Trainer.weights

    def then_full(self: Trainer) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        return weights(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "weights", then_full)
        code, _, err = _run(call, distill_yaml)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert code == 1
    (line,) = (line for line in err.splitlines() if line.startswith("stopped"))
    assert f"{tmp_path}/out/distilled cannot be written" in line
    assert "Traceback" not in err
    assert not [path for path in (tmp_path / "out").iterdir() if "distilled" in path.name]
