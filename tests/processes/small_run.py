"""A whole run on a model of two blocks: scored, pruned, distilled and measured in seconds."""

import contextlib
import io
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, ROOT
from PIL import Image

from amp.models.folder import read_folder_config
from amp.run.console import run_script
from amp.run.sealed import read_json, read_tensors

WRITTEN = GOLDEN / "written_before"
HANG_SECONDS = 60
SCORE = ("main_score.py", "--config_file", "prune.yaml")
PRUNE = ("main_prune.py", "--config_file", "prune.yaml")
DISTIL = ("distill.py", "--config_file", "distill.yaml")
KNN = ("eval/eval_knn.py", "--model", "out/pruned", "--dataset_root", "images", "--output", "knn.json", "--num_workers")
KNN = (*KNN, "0")
STEPS = (SCORE, PRUNE, DISTIL, KNN)


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    code: int
    out: str
    err: str


def write_inputs(folder: Path) -> None:
    """Configs, a model and images of two classes."""
    for name in ("tiny.json", "prune.yaml", "distill.yaml"):
        shutil.copy(WRITTEN / name, folder)
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 16)):
        for index in range(count):
            path = folder / "images" / split / "ab"[index % 2] / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)


def run_in(folder: Path, *words: str) -> Ended:
    """A script in this process, as if it were called in `folder`. Raises what a user would see as a traceback."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    space: dict[str, Any] = {"__name__": "script"}
    source = compile((ROOT / words[0]).read_text(), words[0], "exec")
    argv, sys.argv = sys.argv, list(words)
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _bounded():
            exec(source, space)
            run_script(space["main"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def hang(number: int, frame: Any) -> None:
        raise AssertionError(f"hangs: no end after {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def results(folder: Path) -> dict[str, Any]:
    """What the run found, without times; what is not there is left out."""
    found: dict[str, Any] = {}
    out = folder / "out"
    if (out / "scores.safetensors").exists():
        found["scores"] = {name: t.tolist() for name, t in read_tensors(out / "scores.safetensors")[1].items()}
    if (out / "prune.json").exists():
        found["widths"] = read_json(out / "prune.json")["widths"]
    for name in ("pruned", "distilled"):
        if (out / name / "config.json").exists():
            found[name] = (read_folder_config(out / name).kept, (out / name / "model.safetensors").read_bytes())
    if (folder / "knn.json").exists():
        found["accuracy"] = read_json(folder / "knn.json")["metrics"]
    return found


def inputs(folder: Path) -> dict[str, bytes]:
    """The contents of everything that a run must leave as it is."""
    files = [*folder.glob("*.yaml"), *folder.glob("*.json"), *(folder / "images").rglob("*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file() and path.stem != "knn"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs and all artifacts of a run."""
    folder = tmp_path_factory.mktemp("whole")
    write_inputs(folder)
    for words in STEPS:
        ended = run_in(folder, *words)
        assert ended.code == 0, ended.err
    return folder
