"""The demo, shortened: every entry script through its command line, the closing files, and nothing done twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from amp.data.scenes import build_scenes
from amp.demo.__main__ import Demo

MODELS = ["dense", "pruned", "random_same_widths", "refitted", "distilled"]


def _demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amp.demo", "--out", str(folder), "--steps", "20"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=500)


def test_demo_runs_every_script_and_ends_with_its_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build_scenes(tmp_path / "scenes", num_train=600, num_val=300, num_test=120, num_pairs=30)
    done = _demo(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == [*MODELS, "seconds"]
    for name in MODELS:
        assert set(summary[name]) == {"params", "flops", "top1", "recall1"}
        assert name.replace("_", " ") in done.stdout
    pruned = {name: (summary[name]["params"], summary[name]["flops"]) for name in MODELS[1:]}
    refitted = pruned.pop("refitted")
    assert len(set(pruned.values())) == 1
    assert refitted[0] == pytest.approx(pruned["pruned"][0], rel=0.01)
    assert all(
        a <= b for a, b in zip(pruned["pruned"], (summary["dense"]["params"], summary["dense"]["flops"]), strict=True)
    )
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.size[0] > 1200
    for command in ("main_score.py", "main_prune.py", "torchrun --nproc_per_node=2 distill.py", "eval/eval_zsc.py"):
        assert command in done.stdout

    models = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    capfd.readouterr()
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
