"""A classifier's own top-1: a computation by hand, and which output is which class folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.hf_models import VISION, settings, write
from PIL import Image
from processes.threads import on_threads
from torchvision.datasets import ImageFolder

from amp.evaluation.readers.folders import ClassFolders
from amp.evaluation.top1 import Top1, class_order, open_classifier
from amp.settings.model import ModelSettings
from amp.towers import Classifier, Tower, build_tower

SCRIPT = "eval/eval_top1.py"
LABELS = ["goldfish, Carassius auratus", "fire engine", "tench", "acorn", "hay", "rapeseed"]
FOLDERS = ["Hay", "fire_engine", "tench"]  # as Python sorts them
TIMM = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 3}


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of transformers of six classes, with weights that make it choose."""
    folder = tmp_path_factory.mktemp("hf")
    names = {str(index): label for index, label in enumerate(LABELS)}
    write(folder, "ViTForImageClassification", {**VISION, "id2label": names, "label2id": {}}, seed=3)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of four, five and six images."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(FOLDERS):
        (root / name).mkdir()
        for index in range(4 + label):
            pixels = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).resize((32, 32), Image.Resampling.NEAREST).save(
                root / name / f"{index}.png"
            )
    return root


def _by_hand(tower: Tower, pictures: Path, order: list[int]) -> tuple[float, float]:
    """top-1 and top-5 of the library's own forward, one image at a time."""
    hits = [0, 0]
    images = ImageFolder(str(pictures), tower.transform)
    for image_CHW, folder in images:
        output = tower.model(image_CHW[None])
        scores = getattr(output, "logits", output)[0].tolist()
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
        hits[0] += ranked[0] == order[folder]
        hits[1] += order[folder] in ranked[:5]
    return hits[0] / len(images), hits[1] / len(images)


def test_top1_is_that_of_a_computation_by_hand(tmp_path: Path, hf: Path, pictures: Path, call: Any) -> None:
    words = ["--model", hf, "--model_type", "hf", "--dataset_root", pictures, "--num_workers", 0]
    code, out, err = call(SCRIPT, *words, "--batch_size", 4, "--output", tmp_path / "r.json")
    assert code == 0, err
    assert "matched to the model's 6 classes by the model's own labels" in out
    metrics = json.loads((tmp_path / "r.json").read_text())["metrics"]
    with torch.no_grad():
        assert (metrics["acc1"], metrics["acc5"]) == _by_hand(build_tower(settings(hf)), pictures, [4, 1, 2])
    assert 0 < metrics["acc1"] < metrics["acc5"] <= 1


def test_a_classifier_of_timm_and_any_number_of_processes(pictures: Path) -> None:
    tower = build_tower(ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs=TIMM))
    classifier = open_classifier(tower)
    order, by = class_order(classifier, FOLDERS)
    assert (order, by, classifier.num_classes) == ([0, 1, 2], "the sorted folders", 3)

    def measure() -> Any:
        images = ClassFolders("--dataset_root", pictures, tower.transform)
        return Top1(classifier.logits, tower.dtype, batch_size=2, num_workers=0).measure(images, order)

    one = measure()
    with torch.no_grad():
        assert (one[0]["acc1"], one[1]) == (_by_hand(tower, pictures, order)[0], 15)
    assert on_threads(2, measure) == [one, one]


def _classifier(labels: Any = None, count: int = 3, synsets: Any = None) -> Classifier:
    return Classifier(lambda images: images, count, labels and tuple(labels), synsets)


def test_which_output_is_which_folder(tmp_path: Path) -> None:
    named, ids = _classifier(LABELS, 6), ("n01", "n01440764", "n01443537")
    assert class_order(named, ["carassius_auratus"])[0] == [0]
    assert class_order(named, ["acorn", "fire_engine"]) == ([3, 1], "the model's own labels")
    imagenet = _classifier(synsets=ids)
    assert class_order(imagenet, ["n01443537", "n01440764"]) == ([2, 1], "the ids of ImageNet")
    assert class_order(_classifier(), ["a", "b", "c"]) == ([0, 1, 2], "the sorted folders")
    other = class_order(_classifier(["x", "y", "z"]), ["a", "b", "c"])
    assert other == ([0, 1, 2], "the sorted folders (its own labels, such as 'x', are other names)")
    file = tmp_path / "labels.txt"
    file.write_text("c\na\nb\n")
    assert class_order(_classifier(["a", "b", "c"]), ["a", "c"], str(file)) == ([1, 0], f"the lines of {file}")
    for own, folders, labels, said in (
        (
            named,
            ["acorn", "tensh"],
            None,
            "the class folder tensh matches none of the model's labels; did you mean 'tench'?",
        ),
        (
            _classifier(["a, b", "b", "c"]),
            ["b"],
            None,
            "the class folder b matches 2 of the model's labels; list the class folder",
        ),
        (imagenet, ["n99999999"], None, "ImageNet's 3 classes have no n99999999"),
        (
            _classifier(),
            ["a", "b"],
            None,
            "2 class folders, but 3 classes of the model, which records no labels; list",
        ),
        (_classifier(), ["a", "d"], str(file), f"--labels: {file} has no line d"),
        (_classifier(count=4), ["a"], str(file), f"--labels: {file}: 3 lines, but the model has 4 classes"),
    ):
        assert said in refusal(lambda own=own, folders=folders, labels=labels: class_order(own, folders, labels))


def test_imagenet_has_the_ids_of_a_thousand_classes() -> None:
    tower = build_tower(ModelSettings(frame="timm", name="vit_tiny_patch16_224"), "meta")
    synsets = open_classifier(tower).synsets
    assert synsets is not None
    assert (len(synsets), synsets[0]) == (1000, "n01440764")


def test_a_model_without_a_classifier(tmp_path: Path, meta: Tower, pictures: Path) -> None:
    assert "has no classifier" in refusal(lambda: open_classifier(meta))
    headless = ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs={"num_classes": 0})
    assert "has no classifier" in refusal(lambda: open_classifier(build_tower(headless, "meta")))
