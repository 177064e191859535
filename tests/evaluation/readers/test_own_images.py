"""One's own class folders and captions: the numbers of the known data sets, and one line for every bad file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import refusal
from helpers.model_folders import random_clip
from PIL import Image

from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.options.images import split_roots
from amp.evaluation.readers.class_folders import folder_to_test, is_divided
from amp.evaluation.readers.folders import ClassFolders, divide
from amp.evaluation.readers.texts import name_classes, read_pairs, read_templates
from amp.evaluation.zeroshot import Evaluator
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

SCRIPT = "eval/eval_zsc.py"
FACES = ["angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"]
ROWS = [("a/1.png", "a cat"), ("b/2.png", "a dog, wet"), ("a/1.png", 'a "cat" once more'), ("b/3.png", "é")]


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
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fer2013: seven classes of one to seven images in test/."""
    root = tmp_path_factory.mktemp("fer2013")
    for label, name in enumerate(FACES):
        for index in range(label + 1):
            write_image(root / "test" / name / f"{index}.jpg", 10 * label + index)
    return root


@pytest.mark.parametrize("below", ["", "test"])
def test_class_folders_give_the_numbers_of_a_known_data_set(
    tmp_path: Path, clip: Tower, faces: Path, below: str
) -> None:
    known = Benchmark("zeroshot_classification", "fer2013", str(faces)).build(clip.transform)
    names, prompts = tmp_path / "names.txt", tmp_path / "prompts.txt"
    names.write_text("\n".join(known.classes) + "\n")
    prompts.write_text("".join(f"{template}\r\n" for template in known.templates))
    words = {"classnames": str(names), "templates": str(prompts)}
    own = Benchmark("zeroshot_classification", "imagefolder", str(faces / below), **words).build(clip.transform)
    assert own.samples == known.samples
    evaluator = Evaluator(clip, batch_size=8, num_workers=0)
    measured = [evaluator.classify(d, evaluator.text_classifier(d.classes, d.templates)) for d in (own, known)]
    assert measured[0] == measured[1]


def test_a_folder_of_classes_needs_no_file(tmp_path: Path, model: Any, call: Any) -> None:
    for index, name in enumerate(("big_cat", "dog")):
        write_image(tmp_path / "pets" / name / "0.png", index)
    own = Benchmark("zeroshot_classification", "imagefolder", str(tmp_path / "pets")).build(lambda image: image)
    assert (own.classes, own.templates) == (["big cat", "dog"], ["a photo of a {c}."])
    words = ["--model", model[0], "--pretrained", model[1], "--dataset", "imagefolder", "--num_workers", 0]
    words += ["--dataset_root", tmp_path / "pets", "--output", tmp_path / "result.json"]
    assert call(SCRIPT, *words)[0] == 0
    assert json.loads((tmp_path / "result.json").read_text())["num_images"] == 2
    (tmp_path / "names.txt").write_text("cat\nhound\n")
    code, _, err = call(SCRIPT, *words, "--classnames", tmp_path / "names.txt")
    assert (code, "result.json was made before classnames changed" in err) == (2, True)


def write_rows(folder: Path, suffix: str) -> Path:
    file = folder / f"captions{suffix}"
    if suffix == ".jsonl":
        file.write_text("".join(json.dumps({"file_name": f, "text": c}) + "\n" for f, c in ROWS), "utf-8")
    else:
        mark = "," if suffix == ".csv" else "\t"
        lines = [
            mark.join(("x", "file", "caption")),
            *(mark.join(("", f, '"{}"'.format(c.replace('"', '""')))) for f, c in ROWS),
        ]
        file.write_text("\r\n".join(lines), "utf-8-sig")
    return file


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_captions_are_read_from_rows(tmp_path: Path, suffix: str) -> None:
    expected = {"a/1.png": ["a cat", 'a "cat" once more'], "b/2.png": ["a dog, wet"], "b/3.png": ["é"]}
    assert read_pairs("--captions", write_rows(tmp_path, suffix)) == expected


@pytest.mark.slow
def test_captions_of_rows_give_the_numbers_of_a_known_data_set(tmp_path: Path, model: Any, call: Any) -> None:
    pairs = [(f"{index}.jpg", f"thing {index} {n}, seen") for index in range(12) for n in range(1 + index % 3)]
    for index in range(12):
        write_image(tmp_path / "val2014" / f"{index}.jpg", index)
    images = [{"id": index, "file_name": f"{index}.jpg"} for index in range(12)]
    annotations = [{"image_id": int(name.partition(".")[0]), "caption": text} for name, text in pairs]
    (tmp_path / "coco_test_karpathy.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "own.csv").write_text("file,caption\n" + "".join(f'{name},"{text}"\n' for name, text in pairs))
    words = ["--model", model[0], "--pretrained", model[1], "--task", "zeroshot_retrieval", "--num_workers", 0]
    known = ["--dataset", "mscoco_captions", "--dataset_root", tmp_path]
    own = ["--dataset", "captions", "--dataset_root", tmp_path / "val2014", "--captions", tmp_path / "own.csv"]
    for name, more in (("known", known), ("own", own)):
        assert call(SCRIPT, *words, *more, "--output", tmp_path / f"{name}.json")[0] == 0
    first, second = (json.loads((tmp_path / f"{name}.json").read_text())["metrics"] for name in ("known", "own"))
    assert first == second


def test_names_are_given_in_order_or_by_folder(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("b\tthe second\na\tthe first\nc\tof a class that has no folder here\n")
    assert name_classes(["a", "b"], "--classnames", str(file)) == ["the first", "the second"]
    file.write_text("the first\nthe second")
    assert name_classes(["a", "b"], "--classnames", str(file)) == ["the first", "the second"]


READ: dict[str, Callable[[str], Any]] = {
    "names": lambda file: name_classes(["cat", "dog"], "--x", file),
    "prompts": lambda file: read_templates("--x", file),
    "captions": lambda file: read_pairs("--x", file),
}
HEAD = b"file,caption\n"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("names.txt", b"one\n", "1 lines for 2 class folders; write one per folder, or FOLDER<TAB>NAME"),
        ("names.txt", b"one\n\ntwo\n", "line 2 is empty"),
        ("names.txt", b"", "line 1 is empty"),
        ("names.txt", b"cat\tone\ntwo\n", "line 2 is 'two'; expected FOLDER<TAB>NAME"),
        ("names.txt", b"cat\tone\ncat\ttwo\n", "line 2 repeats the folder cat"),
        ("names.txt", b"cat\tone\ndogs\ttwo\n", "no line for the class folder dog; did you mean 'dogs'?"),
        ("names.txt", b"cat\n\xff\n", "line 2 is not UTF-8 text"),
        ("names.missing", None, "cannot be read (No such file or directory)"),
        ("prompts.txt", b"a {c}\na photo\n", "line 2 is 'a photo': must contain {c}"),
        ("prompts.txt", b"a {c} {d}\n", "line 1 is 'a {c} {d}': must not contain braces other than {c}"),
        ("captions.txt", b"", "expected a file that ends in .csv, .tsv, .jsonl"),
        ("captions.csv", b"a.png,a cat\n", "has no column file or file_name"),
        ("captions.csv", b"", "has no column file or file_name"),
        ("captions.csv", HEAD, "holds no caption"),
        ("captions.csv", HEAD + b"a.png,\n", "line 2: expected a text, found ''"),
        ("captions.csv", HEAD + b"a.png\n", "line 2 has no caption or text"),
        ("captions.csv", HEAD + b"a,b,c\n", "line 2 has more values than columns"),
        ("captions.csv", HEAD + b'a,"b', "the row after line 1 cannot be read (unexpected end of data)"),
        ("captions.jsonl", b'{"file": "a", "caption": 1}\n', "line 1: expected a text, found 1"),
        ("captions.jsonl", b'{"file": "a"}\n', "line 1 has no caption or text"),
        ("captions.jsonl", b"[]\n", "line 1 is not a JSON object"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, file: str, content: bytes | None, said: str) -> None:
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content)
    message = refusal(lambda: READ[path.stem](str(path)))
    assert message.startswith(f"--x: {path}: ")
    assert said in message


@pytest.mark.parametrize(
    ("folders", "divided", "tested"),
    [
        (["cat", "dog"], False, "."),
        (["train", "val"], True, "val"),
        (["train", "test", "notes"], True, "test"),
        (["train", "val", "test"], True, "val"),
        (["test"], True, "test"),
        (["train", "car"], False, "."),  # classes of vehicles
    ],
)
def test_which_folders_are_splits(tmp_path: Path, folders: list[str], divided: bool, tested: str) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    assert is_divided(tmp_path) == divided
    assert Path(folder_to_test(tmp_path)) == tmp_path / tested
    roots = split_roots(str(tmp_path), None)
    if divided:
        assert roots["held_out"] is None
        assert "--held_out: 3" in refusal(lambda: split_roots(str(tmp_path), 3))
    else:
        assert roots == {"train_root": str(tmp_path), "val_root": str(tmp_path), "held_out": 4}


def test_one_folder_is_divided_by_class(tmp_path: Path) -> None:
    for name, count in (("cat", 9), ("dog", 3)):
        for index in range(count):
            write_image(tmp_path / name / f"{index}.png", index)
    images = ClassFolders("--x", tmp_path, lambda image: image)
    train, test = divide(images, 4)
    assert sorted(train.samples + test.samples) == images.samples
    assert [(Path(file).name, label) for file, label in test.samples] == [("3.png", 0), ("7.png", 0)]
