"""Laws of the readers: clip_benchmark's numbers where its files are right, one line where they are not."""

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusal
from helpers import fake_benchmarks
from helpers.numbered_images import write_images
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.dataset_files import check_class_folders
from amp.evaluation.knn import Featurizer, open_images
from amp.evaluation.zeroshot.classifiers import load_classifiers, save_classifier


def build(root: Path, dataset: str, task: str = "retrieval") -> Any:
    return Benchmark(f"zeroshot_{task}", dataset, str(root)).build(pil_to_tensor)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:WebDataset:UserWarning")
def test_shards_are_those_of_clip_benchmark(tmp_path: Path) -> None:
    from clip_benchmark.datasets.builder import build_dataset

    root = fake_benchmarks.build("wds/animals", tmp_path)
    theirs = build_dataset("wds/animals", str(root), pil_to_tensor, task="zeroshot_classification", download=False)
    ours = build(root, "wds/animals", "classification")
    assert (ours.classes, ours.templates) == (theirs.classes, theirs.templates)
    for (image, label), (their_image, their_label) in zip((ours[i] for i in range(17)), theirs, strict=True):
        assert torch.equal(image, their_image)
        assert label == their_label
    gc.collect()


@pytest.mark.parametrize("template", ["a photo", "{c} {x}", "{0} {c}", "{c.__class__}", "{{c}}", "{c} }", ""])
def test_templates_have_the_class_and_no_other_field(tmp_path: Path, template: str) -> None:
    root = fake_benchmarks.build("wds/animals", tmp_path)
    (root / "zeroshot_classification_templates.txt").write_text(f"a {{c}}\n{template}\nthe {{c}}\n")
    message = refusal(lambda: build(root, "wds/animals", "classification"))
    assert message.startswith(f"--dataset_root: {root}/zeroshot_classification_templates.txt: line 2 is ")


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    root = fake_benchmarks.build("wds/animals", tmp_path)
    (root / "classnames.txt").write_text("cat\ndog\nhog\nfox\n")
    message = refusal(lambda: build(root, "wds/animals", "classification"))
    assert message.endswith("test/0.tar/0004.cls: label 4; classnames.txt has 4 classes, so 0 to 3 are allowed")
    (root / "classnames.txt").unlink()
    assert "classnames.txt is missing" in refusal(lambda: build(root, "wds/animals", "classification"))


def coco(root: Path, images: list[Any], annotations: list[Any]) -> Path:
    fake_benchmarks.write_image(root / "val2014/a.jpg", 0)
    fake_benchmarks.write_image(root / "val2014/b.jpg", 1)
    named = [{"id": number, "file_name": name} for number, name in zip(images, ("a.jpg", "b.jpg"), strict=True)]
    (root / "coco_test_karpathy.json").write_text(json.dumps({"images": named, "annotations": annotations}))
    return root


def test_every_caption_is_its_image_s_own(tmp_path: Path) -> None:
    """Ids may be texts, and those of annotations may repeat."""
    annotations = [{"id": 7, "image_id": number, "caption": f"of {number}"} for number in ("y", "x", "y")]
    found = build(coco(tmp_path, ["y", "x"], annotations), "mscoco_captions")
    assert found.samples == [
        (f"{tmp_path}/val2014/b.jpg", ["of x"]),
        (f"{tmp_path}/val2014/a.jpg", ["of y", "of y"]),
    ]


@pytest.mark.parametrize(
    ("images", "captions", "said"),
    [
        ([1, 2], {"1": "one", "2": "two"}, "a.jpg has no caption"),
        ([1, "2"], {1: "one", "2": "two"}, "must be all numbers or all texts"),
        ([1, 1], {1: "one"}, "image id 1 is repeated, or is neither a number nor a text"),
        ([1, None], {1: "one"}, "image id None is"),
        ([1, 2], {1: "one", 2: None}, "b.jpg is None, not a text"),
    ],
)
def test_annotations_of_other_types_are_refused(tmp_path: Path, images: Any, captions: Any, said: str) -> None:
    annotations = [{"id": 0, "image_id": number, "caption": text} for number, text in captions.items()]
    root = coco(tmp_path, images, annotations)
    message = refusal(lambda: build(root, "mscoco_captions"))
    assert message.startswith(f"--dataset_root: {root}/coco_test_karpathy.json: ")
    assert said in message


def test_class_folders_hold_the_images_that_scoring_reads(tmp_path: Path) -> None:
    images = write_images(tmp_path, "cat/a.png", "cat/b.gif", "dog/c.jfif", "dog/deep/d.JPG")
    write_images(tmp_path, "cat/._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/cat/a.png")
    found: Any = open_images("--x", str(tmp_path), pil_to_tensor)
    assert found.classes == ["cat", "dog"]
    assert found.samples == [(str(path), label) for path, label in zip(images, (0, 0, 1, 1), strict=True)]
    check_class_folders(("--x", str(tmp_path)), ("--y", str(tmp_path)))


def test_sixteen_bits_are_read_alike_in_evaluation(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((6, 8), 257 * 100, np.uint16)).save(tmp_path / "cat/a.png")
    image, _ = open_images("--x", str(tmp_path), pil_to_tensor)[0]
    assert image.unique().tolist() == [100]


def test_features_and_classifiers_that_are_no_numbers_are_refused(tmp_path: Path, tower: Any) -> None:
    header = {"num_classes": "3", "dataset": "x", "language": "en", "frame": "f", "model": "m", "classes_sha256": "0"}
    save_classifier(tmp_path / "c.safetensors", torch.full((2, 3), torch.nan), header)
    message = refusal(lambda: load_classifiers([str(tmp_path / "c.safetensors")], header, 2))
    assert message.startswith(f"--load_clfs: {tmp_path}/c.safetensors: holds values that are NaN or infinite")
    featurizer = Featurizer(tower, num_workers=0)
    images = [(torch.full((3, 32, 32), torch.nan), 0)]
    assert "its features are NaN or infinite" in refusal(lambda: featurizer.features(images, "train"))  # type: ignore
