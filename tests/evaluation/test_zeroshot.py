"""The zero-shot measurements: clip_benchmark's numbers, on every number of processes, and no downloads."""

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import get_dataset_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from helpers.model_folders import random_clip
from PIL import Image
from processes.threads import on_threads
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score
from torch.utils.data import DataLoader, IterableDataset

from amp.data.scenes import build_scenes
from amp.errors import UserError
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.zeroshot import Evaluator
from amp.evaluation.zeroshot.classifiers import classifier_header, load_classifiers, save_classifier
from amp.run.sealed import read_json
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

pytestmark = pytest.mark.slow

SCRIPT = "eval/eval_zsc.py"
CLASSES = ["angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return random_clip(tmp_path_factory.mktemp("model"), "tiny")


@pytest.fixture(scope="module")
def clip(model: tuple[str, str]) -> Tower:
    return build_tower(ModelSettings(name=model[0], pretrained=model[1]))


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((40, 36)).save(path)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    """fer2013: seven classes of one to seven images."""
    root = tmp_path_factory.mktemp("fer2013")
    for label, name in enumerate(CLASSES):
        for index in range(label + 1):
            write_image(root / "test" / name / f"{index}.jpg", 10 * label + index)
    return str(root)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """mscoco_captions: 23 images of one to four captions."""
    root = tmp_path_factory.mktemp("mscoco")
    for index in range(23):
        write_image(root / "val2014" / f"{index}.jpg", index)
    images = [{"id": index, "file_name": f"{index}.jpg"} for index in range(23)]
    texts = [{"image_id": index, "caption": f"thing {index} {n}"} for index in range(23) for n in range(1 + index % 4)]
    annotations = [{"id": index, **text} for index, text in enumerate(texts)]
    (root / "coco_test_karpathy.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return str(root)


@pytest.fixture(scope="module")
def renditions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """imagenet-r: 200 classes of one image."""
    root = tmp_path_factory.mktemp("renditions")
    for label in range(200):
        write_image(root / f"n{label:08d}" / "0.jpg", label)
    return str(root)


@pytest.mark.parametrize("name", ["fer2013", "imagenet-r"])
def test_classification_is_that_of_clip_benchmark(clip: Tower, faces: str, renditions: str, name: str) -> None:
    root = faces if name == "fer2013" else renditions
    dataset = Benchmark("zeroshot_classification", name, root).build(clip.transform)
    evaluator = Evaluator(clip, batch_size=5, num_workers=0)
    classes, templates = dataset.classes, dataset.templates[:3]
    classifier = evaluator.text_classifier(classes, templates)
    arguments = (clip.model, clip.make_tokenizer(), classes, templates, "cpu")
    torch.testing.assert_close(
        classifier, zeroshot_classification.zero_shot_classifier(*arguments, amp=False), atol=1e-6, rtol=0
    )
    loader = DataLoader(dataset, 5, collate_fn=get_dataset_collate_fn(name))
    logits, labels = zeroshot_classification.run_classification(clip.model, classifier, loader, "cpu", amp=False)
    # Its own top-k, `accuracy`, fails on numpy 2.4.
    hits = logits.topk(5, 1, True, True)[1] == labels[:, None]
    recall = balanced_accuracy_score(labels, logits.argmax(axis=1))
    acc1, acc5 = (hits[:, :k].sum().item() / len(labels) for k in (1, 5))
    expected = {"acc1": acc1, "acc5": acc5, "mean_per_class_recall": recall}
    assert evaluator.classify(dataset, classifier) == (expected, len(dataset))


def test_retrieval_is_that_of_clip_benchmark(clip: Tower, captions: str) -> None:
    dataset = Benchmark("zeroshot_retrieval", "mscoco_captions", captions).build(clip.transform)
    loader = DataLoader(dataset, 4, collate_fn=get_dataset_collate_fn("mscoco_captions"))
    arguments = (clip.model, loader, clip.make_tokenizer(), "cpu")
    expected = zeroshot_retrieval.evaluate(*arguments, amp=False, recall_k_list=[1, 5, 10])
    assert Evaluator(clip, batch_size=4, num_workers=0).retrieve(dataset) == (expected, 23)


def test_k_is_at_most_the_number_of_items(clip: Tower) -> None:
    items = [(torch.randn(3, 32, 32), ["a cat"]), (torch.randn(3, 32, 32), ["a dog", "a hog"])]
    metrics, _ = Evaluator(clip, num_workers=0).retrieve(items)
    assert metrics["image_retrieval_recall@5"] == metrics["text_retrieval_recall@10"] == 1.0


def test_several_labels_an_image(clip: Tower) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(9, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 2, (9, 4), generator=generator).float()
    classifier = torch.randn(32, 4, generator=generator)
    items = list(zip(images, labels, strict=True))
    loader = DataLoader(items, 4)
    logits, _ = zeroshot_classification.run_classification(clip.model, classifier, loader, "cpu", amp=False)
    expected = zeroshot_classification.average_precision_per_class(logits, labels).mean().item()
    metrics, _ = Evaluator(clip, batch_size=4, num_workers=0).classify(items, classifier)
    assert metrics == {"mean_average_precision": expected}


def test_few_classes_have_no_acc5(clip: Tower) -> None:
    items = [(torch.randn(3, 32, 32), label) for label in (0, 1, 3)]
    assert Evaluator(clip, num_workers=0).classify(items, torch.randn(32, 4))[0]["acc5"] is None


def test_bf16_keeps_the_similarities_in_fp32(clip: Tower) -> None:
    names = [str(number) for number in range(6)]
    single, half = (Evaluator(clip, precision=p).text_classifier(names, ["a {c}"]) for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert not torch.equal(single, half)
    torch.testing.assert_close(half, single, atol=2e-2, rtol=0)


class Stream(IterableDataset[Any]):
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


@pytest.mark.parametrize("size", [2, 3, 9])
def test_every_number_of_processes_gives_the_same_numbers(
    clip: Tower, faces: str, renditions: str, captions: str, size: int
) -> None:
    labelled = Benchmark("zeroshot_classification", "fer2013", faces).build(clip.transform)
    many = Benchmark("zeroshot_classification", "imagenet-r", renditions).build(clip.transform)
    captioned = Benchmark("zeroshot_retrieval", "mscoco_captions", captions).build(clip.transform)
    # One that tells every image: a batch out of its place would show.
    telling_DC = torch.linalg.pinv(clip.model.encode_image(torch.stack([image for image, _ in many])))

    def measure() -> Any:
        evaluator = Evaluator(clip, batch_size=4, num_workers=0, text_batch_size=7)
        classifier = evaluator.text_classifier(labelled.classes, labelled.templates)
        of_stream = evaluator.classify(Stream(list(labelled)), classifier)
        of_many = evaluator.classify(many, telling_DC)
        return (
            *(evaluator.classify(labelled, classifier), of_stream, of_many, evaluator.retrieve(captioned)),
            classifier.tolist(),
        )

    alone = measure()
    assert alone[0] == alone[1]
    assert alone[2][0]["acc1"] == 1.0
    assert on_threads(size, measure) == [alone] * size


def test_the_text_classifier_is_that_of_clip_benchmark_in_any_batch(clip: Tower) -> None:
    """Templates of all classes, or prompts of each; two classes of one name tie exactly."""
    classes, templates = ["cat", "crane", "dog", "crane"], [f"{n} times a {{c}}" for n in range(9)]
    of_class = {name: [f"{name} {n}" for n in range(1 + len(name))] for name in classes}
    for prompts in (templates, of_class):
        arguments = (clip.model, clip.make_tokenizer(), classes, prompts, "cpu")
        expected = zeroshot_classification.zero_shot_classifier(*arguments, amp=False)
        for text_batch_size in (1, 5, 9, 1000):
            evaluator = Evaluator(clip, text_batch_size=text_batch_size)
            classifier = evaluator.text_classifier(classes, prompts)
            torch.testing.assert_close(classifier, expected, atol=1e-6, rtol=0)
            assert torch.equal(classifier[:, 1], classifier[:, 3])
            if prompts is templates and text_batch_size == len(templates):
                assert torch.equal(classifier, expected)


def test_two_processes_give_the_same_json(tmp_path: Path, model: Any, call: Any, launch: Any) -> None:
    build_scenes(tmp_path / "scenes", num_train=2, num_val=2, num_test=60, num_pairs=21)
    words = ["--model", model[0], "--pretrained", model[1], "--task", "zeroshot_retrieval", "--dataset", "digit_scenes"]
    words += ["--dataset_root", tmp_path / "scenes", "--batch_size", 4, "--num_workers", 1]
    run = launch(2, SCRIPT, *words, "--output", tmp_path / "two.json")
    assert run.returncode == 0, run.stderr
    assert call(SCRIPT, *words, "--output", tmp_path / "one.json")[0] == 0
    one, two = (read_json(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert one["num_images"] == 21


def test_the_second_run_does_nothing(tmp_path: Path, model: Any, faces: str, call: Any) -> None:
    words = ["--model", model[0], "--pretrained", model[1], "--dataset", "fer2013", "--dataset_root", faces]
    words += ["--num_workers", 0, "--output", tmp_path / "result.json"]
    code, out, _ = call(SCRIPT, *words)
    assert (code, "already done" in out, "| acc5 " in out) == (0, False, True)
    before = (tmp_path / "result.json").stat().st_mtime_ns
    code, again, _ = call(SCRIPT, *words)
    opening, rest = out.split("fer2013, zeroshot_classification: ")
    assert "estimated time, from one batch: about" in opening
    done = f"already done: {tmp_path}/result.json\n{opening[: opening.index(', on ')]}\n"
    assert (code, again) == (0, f"{done}fer2013, zeroshot_classification: {rest}")
    assert (tmp_path / "result.json").stat().st_mtime_ns == before
    code, _, err = call(SCRIPT, *words, "--batch_size", 7)
    assert (code, len(err.splitlines()), "batch_size = 256, but this run has 7" in err) == (2, 1, True)


def test_a_saved_classifier_replaces_the_texts(tmp_path: Path, model: Any, faces: str, call: Any) -> None:
    words = ["--model", model[0], "--pretrained", model[1], "--dataset", "fer2013", "--dataset_root", faces]
    words += ["--num_workers", 0, "--save_clf", tmp_path / "a.safetensors", "--output"]
    assert call(SCRIPT, *words, tmp_path / "a.json")[0] == 0
    classifier = load_file(tmp_path / "a.safetensors")["classifier"]
    torch.save(classifier, tmp_path / "bare.pt")  # as clip_benchmark writes it
    both = [tmp_path / "a.safetensors", tmp_path / "bare.pt"]
    words[words.index("--save_clf") + 1] = tmp_path / "b.safetensors"
    assert call(SCRIPT, *words, tmp_path / "b.json", "--load_clfs", *both)[0] == 0
    assert torch.equal(load_file(tmp_path / "b.safetensors")["classifier"], classifier)
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert first["metrics"] == second["metrics"]


def test_a_classifier_of_something_else_is_refused(tmp_path: Path, clip: Tower) -> None:
    header = classifier_header(clip, "fer2013", "en", SimpleNamespace(classes=CLASSES, templates=["a {c}"]))
    path = tmp_path / "clf.safetensors"
    save_classifier(path, torch.randn(32, 7), header)
    translated = header | {"language": "it", "classes_sha256": "translated"}
    assert load_classifiers([str(path)], translated, 32).shape == (32, 7)
    for other, width, said in (
        (header | {"model": "ViT-B-32"}, 32, "made for open_clip tiny on fer2013"),
        (header | {"dataset": "mnist", "classes_sha256": "of mnist"}, 32, "not for open_clip tiny on mnist"),
        (header, 64, "embeddings of width 32, but the image embeddings of tiny have width 64"),
    ):
        with pytest.raises(UserError, match=said):
            load_classifiers([str(path)], other, width)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_classifier_file_runs_no_code(tmp_path: Path, clip: Tower) -> None:
    header = classifier_header(clip, "fer2013", "en", SimpleNamespace(classes=CLASSES, templates=[]))
    target, files = tmp_path / "executed", [tmp_path / name for name in ("pickle", "torch", "noise", "missing")]
    files[0].write_bytes(pickle.dumps(Malicious(target)))
    torch.save(Malicious(target), files[1])
    files[2].write_bytes(bytes(range(256)) * 4)
    for file, said in zip(files, ("refused", "refused", "not a text classifier", "No such file"), strict=True):
        with pytest.raises(UserError, match=said):
            load_classifiers([str(file)], header, 32)
    assert not target.exists()


def test_a_missing_class_and_a_broken_image_are_named(tmp_path: Path, model: Any, faces: str, call: Any) -> None:
    root = tmp_path / "fer2013"
    shutil.copytree(faces, root)
    (root / "test" / "sad" / "2.jpg").write_bytes(b"no image")
    words = ["--model", model[0], "--dataset", "fer2013", "--dataset_root", root, "--output", tmp_path / "r.json"]
    code, _, err = call(SCRIPT, *words, "--num_workers", 1)
    assert (code, "sad/2.jpg: cannot be read" in err.splitlines()[-1]) == (2, True)
    shutil.rmtree(root / "test" / "sad")
    code, _, err = call(SCRIPT, *words)
    assert (code, f"error: --dataset_root: {root}/test: 6 class folders; fer2013 has 7 " in err) == (2, True)
