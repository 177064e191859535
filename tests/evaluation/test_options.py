"""The options of the scripts that measure: help and mistakes at once, names of folders and files, what decides."""

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN

from amp.evaluation.options import (
    CompareOptions,
    EfficiencyOptions,
    KnnOptions,
    ProbeOptions,
    SpeedOptions,
    Top1Options,
    ZeroshotOptions,
    file_of,
    parse_knn,
    parse_zeroshot,
    root_of,
)

TINY = ["--model", GOLDEN / "tiny-clip.json"]
MODEL = [*TINY, "--pretrained", GOLDEN / "tiny-clip.safetensors", "--num_workers", 0]
OPTIONS: dict[str, type] = {
    "zsc": ZeroshotOptions,
    "knn": KnnOptions,
    "efficiency": EfficiencyOptions,
    "speed": SpeedOptions,
    "probe": ProbeOptions,
    "top1": Top1Options,
    "models": CompareOptions,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_help_answers_at_once_and_names_every_default(at_once: Any, name: str) -> None:
    shown = at_once(f"eval/eval_{name}.py", "--help")
    assert shown.returncode == 0
    for own in fields(OPTIONS[name]):
        name = own.name.upper() if own.metadata.get("positional") else f"--{own.name}"
        assert f"{name} " in shown.stdout.replace("]", " ")
        said = own.metadata["how"]["help"]
        if own.name not in ("model", "dataset_root", "folder"):  # one of two is required, and the folder
            assert "(default" in said or said.endswith("(required)")


KNN, EFFICIENCY, SPEED = (f"eval/eval_{name}.py" for name in ("knn", "efficiency", "speed"))
PAPER = ["--model", "ViT-g-14", "--dataset", "paper", "--dataset_root", "nowhere"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "a.json"], "--output: a.json: one file for several datasets; put {dataset} into its name"),
        (["--save_clf", "a.safetensors"], "--save_clf: a.safetensors: one file for several datasets"),
        (["--load_clfs", "clfs"], "--load_clfs: clfs/imagenet1k.safetensors: no such file"),
        (["--table", "a.txt"], "--table: a.txt: expected a file that ends in .md or .csv"),
        (["--text_batch_size", "0"], "--text_batch_size: 0 is less than 1"),
        (["--task", "zeroshot_retrieval"], "imagenet1k belongs to --task zeroshot_classification"),
        (["--task", "zeroshot_retrieval", "--save_clf", "a"], "zeroshot_retrieval has no text classifier"),
        (["--classnames", "README.md"], "--classnames: only for --dataset imagefolder"),
        (["--dataset", "imagefolder"], "--dataset_root: nowhere: no such folder"),
        (["--dataset", "imagefolder", "--dataset_root", "amp", "--language", "it"], "--language: it: not used with"),
        (
            ["--task", "zeroshot_retrieval", "--dataset", "captions", "--dataset_root", "amp"],
            "--captions: missing; give",
        ),
        ([], "nowhere/imagenet1k: no such folder"),
    ],
)
def test_mistakes_of_zero_shot_answer_at_once(at_once: Any, words: list[Any], said: str) -> None:
    _check_refused(at_once("eval/eval_zsc.py", *PAPER, *words), said)


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        (KNN, [], "required: --model"),
        (KNN, MODEL, "required: --train_root (or --dataset_root)"),
        (KNN, [*MODEL, "--train_root", "tests"], "required: --val_root (or --dataset_root)"),
        (KNN, [*MODEL, "--dataset_root", "nowhere"], "--train_root: nowhere/train: no such folder"),
        (KNN, [*MODEL, "--dataset_root", "nowhere", "--batch_size", 0], "--batch_size: 0 is less than 1"),
        (
            KNN,
            [*MODEL, "--dataset_root", "nowhere", "--num_workers", "x"],
            "--num_workers: 'x' is not a whole number from 0 to 1024",
        ),
        (EFFICIENCY, [], "required: --model"),
        (EFFICIENCY, [*TINY, "--batch_size", 0], "--batch_size: 0 is less than 1"),
        (EFFICIENCY, [*TINY, "--num_rounds", 2], "--num_rounds: 2 is less than 3"),
        (EFFICIENCY, [*TINY, "--img_size", 0], "--img_size: 0 is less than 1"),
        (EFFICIENCY, [*TINY, "--json", "tests"], "--json: tests: is a folder"),
        (EFFICIENCY, [*TINY, "--json", "README.md/a.json"], "--json: README.md: "),
        (
            SPEED,
            [*TINY, "--dataset", "wds/x", "--dataset_root", "x"],
            "--dataset: wds/x is a stream; give a dataset whose",
        ),
    ],
)
def test_mistakes_in_the_options_answer_at_once(at_once: Any, script: str, words: list[Any], said: str) -> None:
    _check_refused(at_once(script, *words), said)


def _check_refused(run: Any, said: str) -> None:
    assert (run.returncode, run.stdout) == (2, "")
    assert said in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("pattern", "several", "root", "file"),
    [
        ("data", False, "data", "data"),
        ("data", True, "data/x/y", "data/wds-x-y.json"),
        ("{dataset}.json", True, "x/y.json", "wds-x-y.json"),
        ("{dataset_cleaned}", False, "x-y", None),
    ],
)
def test_names_of_folders_and_files(pattern: str, several: bool, root: str, file: str | None) -> None:
    assert root_of(pattern, "wds/x/y", several) == root
    if file:
        assert file_of("--output", pattern, "wds/x/y", ".json", several) == file


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """typed(*words): the command line."""
    return lambda *words: monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])


def test_what_decides_a_zero_shot_result(typed: Any) -> None:
    """The keys stand in results of earlier versions, which must be found again."""
    typed("--model", "m", "--dataset", "x", "--dataset_root", "data", "--table", "t.md", "--output", "o.json")
    (options,) = parse_zeroshot(None)
    expected = {"model": "m", "model_type": None, "pretrained": None, "text_pretrained": None, "batch_size": 256}
    expected |= {"task": "zeroshot_classification", "dataset": "x", "dataset_root": "data", "language": "en"}
    assert options.decisive() == {**expected, "precision": None, "text_batch_size": 80}
    typed("--model", "m", "--dataset", "x", "--dataset_root", "data", "--task", "zeroshot_retrieval", "--img_size", 28)
    (options,) = parse_zeroshot(None)
    assert options.decisive() == {**expected, "task": "zeroshot_retrieval", "precision": None, "img_size": 28}


def test_what_decides_a_knn_result(typed: Any) -> None:
    typed("--pretrained", "folder", "--dataset_root", "data", "--val_root", "other", "--num_workers", 0)
    expected = {"model": None, "model_type": None, "pretrained": "folder", "batch_size": 256}
    assert parse_knn(None).decisive() == {**expected, "train_root": "data/train", "val_root": "other"}


def test_each_data_set_has_its_own_options(typed: Any) -> None:
    words = ["--model", "m", "--dataset", "paper", "imagenet-a", "mnist", "--dataset_root", "data", "--output", "out"]
    typed(*words, "--save_clf", "clf_{dataset}.safetensors")
    each = parse_zeroshot(None)
    names = ["imagenet1k", "imagenet-a", "imagenet-r", "imagenetv2", "imagenet_sketch", "objectnet", "mnist"]
    assert [options.dataset for options in each] == names
    assert [options.dataset_root for options in each] == [f"data/{name}" for name in names]
    assert [options.output for options in each] == [f"out/{name}_zeroshot_classification.json" for name in names]
    assert [options.save_clf for options in each] == [f"clf_{name}.safetensors" for name in names]


def test_no_image_is_kept_from_the_test_where_nothing_learns(tmp_path: Path) -> None:
    def held_out(*tasks: Any) -> object:
        return CompareOptions(folder="pruned", dataset_root=str(tmp_path), tasks=tasks).roots["held_out"]

    assert [held_out("zeroshot"), held_out("top1"), held_out("knn"), held_out()] == [None, None, 4, 4]


def test_an_option_answers_to_the_names_of_other_commands(typed: Any) -> None:
    typed("--model", "x", "--frame", "timm", "--weights", "y", "--dataset_root", "z")
    options = parse_knn("")
    assert (options.model_type, options.pretrained) == ("timm", "y")
