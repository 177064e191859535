"""The demo, shortened: every entry script through its command line, the closing files, and nothing done twice."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from PIL import Image
from processes.start import run_processes

from amp.data.scenes import build_scenes
from amp.demo.__main__ import Demo, main

pytestmark = pytest.mark.slow

START = subprocess.run
MODELS = ["dense", "pruned", "random_same_widths", "refitted", "distilled"]


def _forked(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of the demo's commands, without starting an interpreter for each."""
    words = [word for word in command[1:] if word not in ("torch.distributed.run", "--standalone")]
    number = 1
    if words[1] == "--nproc_per_node=2":
        number, words = 2, words[2:]
    return _shown(run_processes(number, words, options["env"]))


def _forked_but_for_torchrun(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    if "torch.distributed.run" not in command:
        return _forked(command, **options)
    return _shown(START(command, capture_output=True, text=True, timeout=200, **options))


def _shown(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_demo_runs_every_script_and_ends_with_its_summary(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_scenes(tmp_path / "scenes", num_train=512, num_val=256, num_test=60, num_pairs=20)
    monkeypatch.setattr("amp.demo.__main__.subprocess.run", _forked_but_for_torchrun)
    monkeypatch.setattr("sys.argv", ["amp.demo", "--out", str(tmp_path), "--steps", "20"])
    main()
    shown = capfd.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == [*MODELS, "seconds", "checksum"]
    for name in MODELS:
        assert set(summary[name]) == {"params", "flops", "top1", "recall1"}
        assert name.replace("_", " ") in shown
    pruned = {name: (summary[name]["params"], summary[name]["flops"]) for name in MODELS[1:]}
    refitted = pruned.pop("refitted")
    assert len(set(pruned.values())) == 1
    assert refitted[0] == pytest.approx(pruned["pruned"][0], rel=0.01)
    assert all(
        a <= b for a, b in zip(pruned["pruned"], (summary["dense"]["params"], summary["dense"]["flops"]), strict=True)
    )
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.size[0] > 1200
    for command in ("amp score", "amp prune", "torchrun --nproc_per_node=2 -m amp distill", "amp eval zsc"):
        assert command in shown

    monkeypatch.setattr("amp.demo.__main__.subprocess.run", _forked)
    models = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = Demo(tmp_path, 20)
    for stage in (again.train_dense, again.prune, again.distill):
        stage()
    said = capfd.readouterr().out
    assert f"reusing the dense model {tmp_path}" in said
    assert said.count("already done") == 7
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == models


@pytest.mark.parametrize(
    ("words", "message"), [(["--steps", "0"], "--steps"), (["--out", "README.md/x"], "output.dir")]
)
def test_demo_mistakes(words: list[str], message: str) -> None:
    command = [sys.executable, "-m", "amp.demo", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
