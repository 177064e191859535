"""Shared fixtures: the golden network and its images as a user would have them on disk, model folders, script calls."""

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.numbered_images import write_images
from helpers.without_torch import Answers
from matplotlib.figure import Figure
from PIL import Image
from processes.start import run_processes
from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.errors import UserError
from amp.models.folder import save_tower
from amp.pruning.measure.held_out import HeldOutEntropy
from amp.pruning.measure.networks import top_neurons
from amp.run.console import run_script
from amp.run.world import World, among
from amp.settings.data import DataSettings
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
WORLD = World(0, 1, torch.device("cpu"))

pytest_plugins = ["helpers.model_folders", "processes.small_run"]


def refusal(call: Callable[[], Any]) -> str:
    """The one line with which `call` refuses."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.strip()
    return message


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models lose more to threads than they gain, and processes share the cores."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """One process, and the CPU also where there is a GPU, but for tests of it."""
    with nullcontext() if request.node.get_closest_marker("gpu") else among(WORLD):
        yield


@pytest.fixture(autouse=True)
def _repository_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs name paths relative to the repository's root, as users run the scripts."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def pictures() -> None:
    """Pictures are drawn."""


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a fourth of a small pruning: without `pictures`, files of them are empty."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **how: Path(path).touch())


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Scores, probes and widths of an independent implementation."""
    return json.loads((GOLDEN / "golden.json").read_text())


@pytest.fixture(scope="session")
def golden_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden images as an image folder: train/scene/0000.png ..., val/scene/0000.png ..."""
    root = tmp_path_factory.mktemp("golden_images")
    arrays = np.load(GOLDEN / "images.npz")
    for split in ("train", "val"):
        folder = root / split / "scene"
        folder.mkdir(parents=True)
        for index, image in enumerate(arrays[split]):
            Image.fromarray(image).save(folder / f"{index:04d}.png")
    return root


@pytest.fixture
def golden_model() -> ModelSettings:
    return ModelSettings(
        frame="open_clip", name=str(GOLDEN / "tiny-clip.json"), pretrained=str(GOLDEN / "tiny-clip.safetensors")
    )


@functools.cache
def built(name: str, weights: str | None = None, device: str = "cpu") -> Tower:
    """A network of open_clip, built once; tests take copies."""
    return build_tower(ModelSettings(frame="open_clip", name=name, pretrained=weights), device)


@pytest.fixture
def tower(golden_model: ModelSettings) -> Tower:
    """The golden network: 5 blocks, width 64, hidden width 256, images of 32 px; a fresh one for every test."""
    return copy.deepcopy(built(golden_model.name, golden_model.pretrained))


@pytest.fixture
def meta(golden_model: ModelSettings) -> Tower:
    """The golden network without weights."""
    return copy.deepcopy(built(golden_model.name, golden_model.pretrained, "meta"))


@pytest.fixture
def prune_yaml(tmp_path: Path, golden_images: Path) -> Path:
    """Settings of the golden scoring and pruning; output in tmp_path/out."""
    path = tmp_path / "prune.yaml"
    path.write_text(f"""
model: {{frame: open_clip, name: {GOLDEN}/tiny-clip.json, pretrained: {GOLDEN}/tiny-clip.safetensors}}
data: {{name: imagefolder, root: {golden_images}, batch_size: 32, shuffle: false, num_workers: 0}}
score: {{criterion: entropy, inverse_temperature: 15.0, absolute: true}}
prune: {{entropy_increase: 1e-2, search_steps: 6}}
output: {{dir: {tmp_path}/out}}
""")
    return path


@pytest.fixture(scope="session")
def _scores_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first `scored` puts main_score.py's file for the others."""
    return tmp_path_factory.mktemp("scored") / "scores.safetensors"


@pytest.fixture
def scored(prune_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], _scores_file: Path) -> Path:
    """tmp_path/out, the folder of `prune_yaml`, with what main_score.py writes there."""
    out = tmp_path / "out"
    if _scores_file.exists():
        out.mkdir()
        shutil.copy(_scores_file, out)
    else:
        code, _, err = call("main_score.py", "--config_file", prune_yaml)
        assert code == 0, err
        shutil.copy(out / "scores.safetensors", _scores_file)
    return out


@pytest.fixture(scope="session")
def golden_distill() -> dict[str, Any]:
    return json.loads((GOLDEN / "distill.json").read_text())


@pytest.fixture
def distill_yaml(
    tmp_path: Path, tower: Tower, golden: dict[str, Any], golden_distill: dict[str, Any], golden_images: Path
) -> Path:
    """The golden distillation as a user would run it; the student in tmp_path/student, output in tmp_path/out."""
    kept = []
    for slot, scores, width in zip(
        tower.slots, golden["score"]["scores_abs@15.0"], golden_distill["widths"], strict=True
    ):
        indices = top_neurons(torch.tensor(scores), width)
        slot.keep(indices)
        kept.append(indices.tolist())
    save_tower(tower, kept, {}, tmp_path / "student")
    path = tmp_path / "distill.yaml"
    path.write_text(f"""
teacher: {{frame: open_clip, name: {GOLDEN}/tiny-clip.json, pretrained: {GOLDEN}/tiny-clip.safetensors}}
student: {{pretrained: {tmp_path}/student}}
data: {{name: imagefolder, root: {golden_images}, batch_size: 16, augment: none, shuffle: false, num_workers: 0}}
optim: {{base_lr: 0.02, min_lr: 1e-4, epochs: 5, warmup_epochs: 1, weight_decay: 0.04, weight_decay_end: 0.2}}
output: {{dir: {tmp_path}/out}}
""")
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """call(script, *words) -> (exit code, stdout, stderr) of an entry script, in this process."""

    def call_script(script: str, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
        space: dict[str, Any] = {"__name__": "script"}
        source = (ROOT / script).read_text()
        exec(compile(source, script, "exec"), space)
        capfd.readouterr()
        code = 0
        try:
            run_script(space["main"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call_script


@pytest.fixture
def launch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """launch(number, script, *words): a run on `number` processes, which are forked with the libraries imported."""

    def launch_script(number: int, script: str, *words: object) -> subprocess.CompletedProcess[str]:
        return run_processes(number, [script, *map(str, words)])

    return launch_script


@pytest.fixture
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """torchrun(number, script, *words): a run as a user starts it, by torchrun."""

    def run_script(number: int, script: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
        command += [script, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)

    return run_script


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """23 training images in two folders, 9 held-out ones."""
    folder = tmp_path / "images"
    write_images(folder, *(f"train/{'ab'[i % 2]}/{i:03d}.png" for i in range(23)))
    write_images(folder, *(f"val/{i:03d}.png" for i in range(9)))
    return folder


@pytest.fixture
def batches(tower: Tower, golden_images: Path) -> Callable[[str], list[Tensor]]:
    """The golden batches of a split: 2 of 32 images, in file order."""
    settings = DataSettings(name="imagefolder", root=str(golden_images), batch_size=32, shuffle=False, num_workers=0)

    def of_split(split: Any) -> list[Tensor]:
        return list(Batches(list_images(settings, split), tower.transform, settings))

    return of_split


@pytest.fixture
def scores(golden: dict[str, Any]) -> list[Tensor]:
    """The golden scores of every block."""
    return [torch.tensor(score) for score in golden["score"]["scores_abs@15.0"]]


@pytest.fixture
def held_out(tower: Tower, batches: Callable[[str], list[Tensor]]) -> HeldOutEntropy:
    """The entropy of `tower` on the golden held-out batches."""
    return HeldOutEntropy(tower, batches("val"), 15.0)


@pytest.fixture(scope="session")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """at_once(script, *words): a run that answers without torch, whose import takes seconds; importing it fails."""
    answers = Answers(tmp_path_factory.mktemp("no_torch"))
    yield answers
    answers.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts processes is slow, and begins first: two workers end at the same time. Tests of a GPU need one."""
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)
        if not {"launch", "torchrun", "at_once"}.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
