"""k-nearest-neighbour accuracy: an independent reference, every number of processes, every bad input."""

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from PIL import Image
from processes.threads import on_threads
from torch import Tensor
from torchvision.datasets import ImageFolder

from amp.evaluation.knn import Featurizer, open_images, vote
from amp.run.sealed import read_json
from amp.run.world import world
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

SCRIPT = "eval/eval_knn.py"
MODEL = ["--model", GOLDEN / "tiny-clip.json", "--pretrained", GOLDEN / "tiny-clip.safetensors", "--num_workers", 0]


def write_image(path: Path, seed: int, label: int) -> None:
    """Noise, brighter in one third: a class that can be told, not always."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 200, (6, 6, 3))
    pixels[2 * label : 2 * label + 2] += 25
    Image.fromarray(pixels.astype(np.uint8)).resize((32, 32)).save(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes: 8, 9 and 10 training images, 5, 6 and 7 validation images."""
    root = tmp_path_factory.mktemp("pictures")
    for label, name in enumerate(("cat", "dog", "hog")):
        for split, count in (("train", 8 + label), ("val", 5 + label)):
            for index in range(count):
                seed = 1000 * label + 100 * len(split) + index
                write_image(root / split / name / f"{index}.png", seed, label)
    return root


def reference(train: Tensor, labels: Tensor, query: Tensor, k: int) -> list[int]:
    """Predicted classes by plain loops in float64."""
    predicted = []
    for row in query.double().tolist():
        similar = sorted(
            (
                (math.fsum(a * b for a, b in zip(row, other, strict=True)), label)
                for other, label in zip(train.double().tolist(), labels.tolist(), strict=True)
            ),
            reverse=True,
        )
        votes: dict[int, float] = defaultdict(float)
        for similarity, label in similar[:k]:
            votes[label] += math.exp(similarity / 0.07)
        predicted.append(max(votes, key=lambda label: votes[label]))
    return predicted


@pytest.mark.parametrize("chunk_size", [1, 1000, 2**26])
def test_votes_are_those_of_the_reference(chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    train, query = (F.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (210, 40))
    labels = torch.randint(0, 9, (210,), generator=generator)
    predicted = vote(train, labels, query, [1, 10, 20, 200], chunk_size)
    for k in (1, 10, 20, 200):
        assert predicted[k].tolist() == reference(train, labels, query, k)
    assert not torch.equal(predicted[1], predicted[200])


def test_near_neighbours_outvote_many() -> None:
    """Two at cosine 1 against eight at cosine 0.8: 2 exp(0.2 / 0.07) = 34.8 > 8."""
    near, far, query = [1.0, 0.0], [0.8, 0.6], torch.tensor([[1.0, 0.0]])
    train, labels = torch.tensor([near] * 2 + [far] * 8), torch.tensor([1] * 2 + [0] * 8)
    assert vote(train, labels, query, [10])[10].tolist() == [1]


def test_accuracies_are_those_of_the_reference(tower: Tower, pictures: Path) -> None:
    features = {}
    for split in ("train", "val"):
        folder = ImageFolder(str(pictures / split), tower.transform)
        images = torch.stack([image for image, _ in folder])
        features[split] = (F.normalize(tower.feature(images).double(), dim=1), torch.tensor(folder.targets))
    train, val = (open_images("--x", str(pictures / split), tower.transform) for split in ("train", "val"))
    measured = Featurizer(tower, batch_size=4, num_workers=0).accuracies(train, val)
    assert list(measured) == ["knn10", "knn20"]
    for k in (10, 20):
        predicted = torch.tensor(reference(*features["train"], features["val"][0], k))
        assert measured[f"knn{k}"] == (predicted == features["val"][1]).double().mean().item()
    assert any(1 / 3 < value < 1 for value in measured.values())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 9])
def test_every_number_of_processes_gives_the_same_numbers(
    golden_model: ModelSettings, pictures: Path, size: int
) -> None:
    towers = [build_tower(golden_model) for _ in range(size)]  # a tower's readout is not for several threads

    def measure() -> Any:
        tower = towers[world().rank]
        train, val = (open_images("--x", str(pictures / split), tower.transform) for split in ("train", "val"))
        featurizer = Featurizer(tower, batch_size=4, num_workers=0)
        features = [tensor.tolist() for tensor in featurizer.features(train, "train")]
        return features, featurizer.accuracies(train, val)

    features, accuracies = measure()
    assert on_threads(size, measure) == [(features, accuracies)] + [([], accuracies)] * (size - 1)


def test_two_processes_give_the_same_json(tmp_path: Path, pictures: Path, call: Any, launch: Any) -> None:
    words = [*MODEL, "--dataset_root", pictures, "--batch_size", 4]
    run = launch(2, SCRIPT, *words, "--output", tmp_path / "two.json")
    assert run.returncode == 0, run.stderr
    assert call(SCRIPT, *words, "--output", tmp_path / "one.json")[0] == 0
    one, two = (read_json(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert (one["num_images"], one["num_train_images"]) == (18, 27)


@pytest.mark.slow
def test_duplicated_images_are_all_known(tmp_path: Path, pictures: Path, call: Any) -> None:
    """Ten copies of every validation image are its ten nearest."""
    for path in (pictures / "val").rglob("*.png"):
        folder = tmp_path / "train" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(10):
            shutil.copy(path, folder / f"{path.stem}_{copy}.png")
    roots = ["--train_root", tmp_path / "train", "--val_root", pictures / "val"]
    code, out, _ = call(SCRIPT, *MODEL, *roots, "--output", tmp_path / "result.json")
    assert (code, "skipped k = 200: there are only 180 training images" in out) == (0, True)
    record = json.loads((tmp_path / "result.json").read_text())
    assert list(record["metrics"]) == ["knn10", "knn20", "knn100"]
    assert record["metrics"]["knn10"] == 1.0


@pytest.mark.slow
def test_the_second_run_does_nothing(tmp_path: Path, pictures: Path, call: Any) -> None:
    words = [*MODEL, "--dataset_root", pictures, "--output", tmp_path / "result.json"]
    code, out, _ = call(SCRIPT, *words)
    assert (code, "already done" in out) == (0, False)
    title, _, _, _, counted, skipped, *rest = out.splitlines(keepends=True)
    assert counted.startswith("45 images; estimated time, from one batch: about ")
    assert skipped == "skipped k = 100, 200: there are only 27 training images\n"
    before = (tmp_path / "result.json").stat().st_mtime_ns
    whose = title[: title.index(", on ")]
    assert call(SCRIPT, *words)[:2] == (0, f"already done: {tmp_path}/result.json\n{whose}\n" + "".join(rest))
    assert (tmp_path / "result.json").stat().st_mtime_ns == before
    code, _, err = call(SCRIPT, *words, "--batch_size", 7)
    assert (code, len(err.splitlines()), "batch_size = 256, but this run has 7" in err) == (2, 1, True)


def test_a_pruned_folder_can_be_measured(
    tmp_path: Path, folder: Path, pictures: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", folder, "--num_workers", 0, "--dataset_root", pictures]
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(SCRIPT, *words)
    assert code == 0
    (result,) = (tmp_path / "out" / "eval").iterdir()
    assert result.name.startswith(f"{pictures.name}_knn_pruned_")
    assert f"numbers: out/eval/{result.name}" in out


@pytest.mark.slow
def test_mistakes_in_the_folders_are_one_line(tmp_path: Path, pictures: Path, call: Any) -> None:
    root, output = tmp_path / "pictures", tmp_path / "result.json"
    shutil.copytree(pictures, root)

    def said() -> str:
        code, _, err = call(SCRIPT, *MODEL, "--dataset_root", root, "--output", output)
        assert (code, "Traceback" in err, output.exists()) == (2, False, False)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    (root / "val" / "cat" / "0.png").write_bytes(b"no image")
    assert "--val_root: " in said()
    assert "val/cat/0.png: cannot be read" in said()
    for path in (root / "val" / "cat").iterdir():
        path.unlink()
    assert said().endswith("/val: the class folder cat holds no image")
    (root / "val" / "cat").rmdir()
    assert said() == f"error: --val_root: {root}/val: has no folder for the class cat of the other folder"
    shutil.move(root / "train" / "dog", root / "val" / "cat")
    assert said() == f"error: --train_root: {root}/train: has no folder for the class dog of the other folder"
    shutil.rmtree(root / "val")
    assert said() == f"error: --val_root: {root}/val: no such folder"
    (root / "val").mkdir()
    assert said() == f"error: --val_root: {root}/val: holds no class folder"


@pytest.mark.slow
def test_too_few_training_images(tmp_path: Path, pictures: Path, call: Any) -> None:
    for name in ("cat", "dog", "hog"):
        write_image(tmp_path / name / "0.png", 0, 0)
    roots = ["--train_root", tmp_path, "--val_root", pictures / "val"]
    code, _, err = call(SCRIPT, *MODEL, *roots, "--output", tmp_path / "result.json")
    assert (code, err) == (2, "error: --train_root: 3 images are too few; the smallest k is 10\n")


@pytest.mark.slow
def test_another_image_size_is_another_measurement(tmp_path: Path, pictures: Path, call: Any) -> None:
    words = ["--model", "vit_small_patch14_dinov2", "--model_type", "dinov2", "--num_workers", 0]
    words += ["--dataset_root", pictures, "--output", tmp_path / "result.json"]
    assert call(SCRIPT, *words, "--img_size", 28)[0] == 0
    assert json.loads((tmp_path / "result.json").read_text())["settings"]["img_size"] == 28
    code, _, err = call(SCRIPT, *words, "--img_size", 42)
    assert (code, "result.json was made with img_size = 28, but this run has 42" in err) == (2, True)
