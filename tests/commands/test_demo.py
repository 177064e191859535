"""The demo: the quick one, shortened, from end to end; of the full one, that every command is one that runs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import refusal
from PIL import Image
from processes.start import run_processes

from amp.data.scenes import build_scenes
from amp.demo.__main__ import main
from amp.demo.pipeline import Demo
from amp.demo.shipped import FILE, ship, write_shipped
from amp.evaluation.options import parse_zeroshot
from amp.run.files import file_sha256
from amp.run.sealed import write_json
from amp.settings.distill import DistillConfig
from amp.settings.prune import PruneConfig
from amp.settings.reading.command_line import parse_args, parse_prune, parse_score


def _forked(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of the demo's commands in few steps, without starting an interpreter for each."""
    fewer = ["--set", "prune.refit_steps=10"] if command[3] == "prune" else []
    done = run_processes(1, [*command[1:], *fewer], options["env"])
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_quick_demo_ends_with_its_table_and_does_nothing_twice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_scenes(tmp_path / "scenes", num_train=256, num_val=128, num_test=120, num_pairs=40)
    monkeypatch.setattr("amp.demo.pipeline.subprocess.run", _forked)
    monkeypatch.setattr("sys.argv", ["amp demo", "--out", str(tmp_path)])
    main()
    shown = capfd.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    dense, refitted = summary["dense"], summary["refitted"]
    assert refitted["params"] == pytest.approx(dense["params"] / 2, rel=0.005)
    assert dense["top1"] > 0.9
    assert refitted["top1"] > 0.9 * dense["top1"]
    assert shown.index("about a minute") < shown.index("$ amp prune") < shown.index("$ amp eval compare")
    assert shown.index("| pruned and refitted |") < shown.index("next:\n", shown.index("summary.json"))
    for picture in (tmp_path / "summary.png", tmp_path / "half" / "prune.png"):
        with Image.open(picture) as image:
            assert image.size[0] > 1200

    models = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    main()
    said = capfd.readouterr().out
    assert f"reusing the dense model {tmp_path}" in said
    assert said.count("already done") == 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == models


def test_the_full_demo_types_commands_that_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: {"dense": 2000, "pruned": 1000} for name in ("params", "flops")}
    metrics = {"acc1": 0.9, "image_retrieval_recall@1": 0.8}
    ran = []

    def described(folder: Path) -> None:
        folder.mkdir(parents=True)
        write_json(folder / "config.json", {})

    def understood(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        words = command[len(command) - command[::-1].index("-m") :]
        ran.append(" ".join(words[: 3 if words[1] == "eval" else 2]))
        if words[0] == "amp.demo.dense":
            demo.dense.parent.mkdir()
            demo.dense.touch()
            return subprocess.CompletedProcess(command, 0)
        if words[1] == "eval":
            monkeypatch.setattr("sys.argv", words[2:])
            (options_of,) = parse_zeroshot("")
            write_json(Path(options_of.output), {"metrics": metrics})
            return subprocess.CompletedProcess(command, 0)
        if words[1] == "distill":
            described(Path(parse_args(DistillConfig, "", words[2:]).output.dir, "distilled"))
            return subprocess.CompletedProcess(command, 0)
        config: PruneConfig = {"score": parse_score, "prune": parse_prune}[words[1]]("", words[2:])[0]
        if words[1] == "prune":
            described(Path(config.output.dir, "pruned"))
            write_json(Path(config.output.dir) / "prune.json", {**sizes, "widths": [5] * 6})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("amp.demo.pipeline.subprocess.run", understood)
    demo = Demo(tmp_path)
    demo.scenes.mkdir()
    (tmp_path / "eval").mkdir()
    demo.train_dense(7)
    (tmp_path / "eval").mkdir()
    for stage in (demo.prune_as_published, demo.distill):
        stage()
    rows = demo.evaluate()
    scored = ["amp score", "amp prune"]
    assert ran == ["amp.demo.dense --scenes", *scored, *scored, "amp prune", "amp distill", *["amp eval zsc"] * 10]
    assert list(rows) == ["dense", "pruned", "random_same_widths", "refitted", "distilled"]
    assert {(row["params"], row["top1"]) for row in list(rows.values())[1:]} == {(1000, 0.9)}
    demo.train_dense(7)
    assert ran.count("amp.demo.dense --scenes") == 1


def test_the_shipped_model_is_what_was_trained_to_the_bit(tmp_path: Path) -> None:
    write_shipped(tmp_path / "dense.safetensors")
    ship(tmp_path / "dense.safetensors", tmp_path / "again.safetensors")
    assert file_sha256(str(tmp_path / "again.safetensors")) == file_sha256(str(FILE))
    assert FILE.stat().st_size < 2e6


def test_demo_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        (["--full", "--steps", "0"], "--steps"),
        (["--steps", "3"], "--steps: 3: only allowed with --full"),
        (["--out", "README.md/x"], "--out: README.md/x"),
    ):
        monkeypatch.setattr("sys.argv", ["amp demo", *words])
        assert refusal(main).startswith(message)
