"""Laws of a search on two processes: it finds what one finds, and goes on where one of them was killed."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amp.run.sealed import read_json

Call = Callable[..., tuple[int, str, str]]
Launch = Callable[..., subprocess.CompletedProcess[str]]


def record(folder: Path) -> dict[str, Any]:
    """prune.json without times, and what the journal and the model are."""
    found = read_json(folder / "prune.json")
    del found["cost"]["seconds"], found["reproduce"]
    return found


def test_two_processes_race_as_one_and_go_on_when_one_is_killed(
    prune_yaml: Path, tmp_path: Path, call: Call, launch: Launch
) -> None:
    settings = ["data.batch_size=2", "prune.search=racing", "prune.preset=strict", "prune.store_every=2"]
    settings += ["prune.recover_steps=8", "prune.num_calibration_samples=16"]  # On two processes, of one image each.
    words = ["--config_file", str(prune_yaml), *(word for one in settings for word in ("--set", one))]
    assert call("main_score.py", *words)[0] == 0
    folders = {name: tmp_path / name for name in ("one", "two", "killed")}
    for folder in folders.values():
        shutil.copytree(tmp_path / "out", folder)
    into = {name: [*words, "--set", f"output.dir={folder}"] for name, folder in folders.items()}

    assert call("main_prune.py", *into["one"])[0] == 0
    done = launch(2, "main_prune.py", *into["two"])
    assert done.returncode == 0, done.stderr
    one, two = record(folders["one"]), record(folders["two"])
    assert 20 <= min(one["probe_batches"]) < max(one["probe_batches"]) <= 32
    for key in ("widths", "probe_batches", "dense_batches", "cost"):
        assert one[key] == two[key]
    assert [probe[:2] for probe in one["probes"]] == [probe[:2] for probe in two["probes"]]
    assert [probe[2] for probe in one["probes"]] == pytest.approx([probe[2] for probe in two["probes"]], abs=1e-5)
    assert one["feature_cosine"] == pytest.approx(two["feature_cosine"], abs=1e-4)
    assert two["feature_cosine"] > two["feature_cosine_before_recovery"]

    killed = launch(
        2,
        "tests/processes/killed_at.py",
        "amp.pruning.measure.held_out.HeldOutEntropy.measure",
        20,
        "main_prune.py",
        *into["killed"],
    )
    assert killed.returncode == 1
    lines = [(folder / "prune_journal.jsonl").read_text().splitlines() for folder in folders.values()]
    assert 15 <= len(lines[2]) <= 20 < len(lines[1])
    done = launch(2, "main_prune.py", *into["killed"])
    assert done.returncode == 0, done.stderr
    assert record(folders["killed"]) == two
    for name in ("prune_journal.jsonl", "pruned/model.safetensors"):
        assert (folders["killed"] / name).read_bytes() == (folders["two"] / name).read_bytes()
