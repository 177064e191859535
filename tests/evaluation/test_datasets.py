"""eval_zsc on fake copies of the paper's datasets, offline: several in one call, resume, the table, what is missing."""

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fake_benchmarks
from helpers.model_folders import random_clip
from safetensors.torch import load_file
from torch.utils.data import default_collate
from torchvision.transforms.functional import pil_to_tensor

from amp.data.scenes import build_scenes
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.paper import DATASETS, MEAN
from amp.evaluation.sharding import ShardedBatches
from amp.evaluation.zeroshot.classifiers import save_classifier
from amp.run.sealed import read_json
from amp.run.world import World, among

pytestmark = pytest.mark.slow

SCRIPT = "eval/eval_zsc.py"
RETRIEVAL = ("mscoco_captions", "flickr30k")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every dataset, at parent/DATASET."""
    folder = tmp_path_factory.mktemp("datasets")
    for dataset in fake_benchmarks.BUILDERS:
        fake_benchmarks.build(dataset, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    config, weights = random_clip(tmp_path_factory.mktemp("model"), "ViT-g-14")
    return ["--model", config, "--pretrained", weights, "--num_workers", "0"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_benchmark.datasets.builder.call", pytest.fail)
    monkeypatch.setattr("requests.get", pytest.fail)


@pytest.fixture
def _few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four prompts a class instead of eighty, whose tokens take most of the time."""
    build = Benchmark.build

    def build_with_few(benchmark: Benchmark, transform: Any) -> Any:
        dataset = build(benchmark, transform)
        dataset.templates = dataset.templates[:4]
        return dataset

    monkeypatch.setattr(Benchmark, "build", build_with_few)


def task_of(dataset: str) -> str:
    return "zeroshot_retrieval" if dataset in RETRIEVAL else "zeroshot_classification"


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def read(path: Path) -> dict[str, Any]:
    return read_json(path)


@pytest.mark.usefixtures("_few_prompts")
def test_the_six_of_the_paper_in_one_call(tmp_path: Path, parent: Path, model: Any, call: Any) -> None:
    words = [*model, "--dataset", "paper", "--dataset_root", parent, "--output", tmp_path / "results"]
    words += ["--save_clf", tmp_path / "clf_{dataset}.safetensors"]
    code, out, _ = call(SCRIPT, *words)
    assert (code, "already done" in out) == (0, False)
    files = [tmp_path / "results" / f"{dataset}_zeroshot_classification.json" for dataset in DATASETS]
    counts = [1000, 200, 200, 10_000, 1000, 113]
    assert [read(file)["num_images"] for file in files] == counts
    for dataset in DATASETS:
        columns = fake_benchmarks.NUM_CLASSES.get(dataset, 1000)
        assert load_file(tmp_path / f"clf_{dataset}.safetensors")["classifier"].shape == (32, columns)
    (table,) = (tmp_path / "results").glob("*.csv")
    headers, row = read_csv(table)
    assert headers == ["top-1 (%)", *DATASETS, MEAN]
    assert row[1:-1] == [f"{100 * read(file)['metrics']['acc1']:.2f}" for file in files]
    assert table.with_suffix(".md").read_text() in out

    # A killed run measures what is left, and no more.
    files[-1].unlink()
    before = [file.stat().st_mtime_ns for file in files[:-1]]
    code, again, _ = call(SCRIPT, *words)
    assert (code, again.count("already done: ")) == (0, 5)
    assert [file.stat().st_mtime_ns for file in files[:-1]] == before
    assert read_csv(table) == [headers, row]


@pytest.mark.parametrize("dataset", [*RETRIEVAL, "wds/animals"])
def test_one_dataset_in_its_own_folder(tmp_path: Path, parent: Path, model: Any, call: Any, dataset: str) -> None:
    words = ["--task", task_of(dataset), "--dataset", dataset, "--dataset_root", f"{parent}/{{dataset}}"]
    code, _, err = call(SCRIPT, *model, *words, "--output", tmp_path / "result.json")
    assert code == 0, err
    record = read(tmp_path / "result.json")
    assert record["num_images"] == (17 if dataset == "wds/animals" else 23)
    assert record["settings"]["dataset_root"] == str(parent / dataset.removeprefix("wds/"))
    assert list(tmp_path.iterdir()) == [tmp_path / "result.json"]


def test_each_process_reads_its_own_images_of_an_archive(parent: Path) -> None:
    seen = []
    dataset = Benchmark("zeroshot_classification", "wds/animals", str(parent / "animals")).build(
        lambda image: seen.append(image) or pil_to_tensor(image)
    )
    for rank, expected in enumerate([[0, 1, 2, 6, 7, 8, 12, 13, 14], [3, 4, 5, 9, 10, 11, 15, 16]]):
        with among(World(rank, 2, torch.device("cpu"))):
            batches = dict(ShardedBatches(batch_size=3, num_workers=0).batches(dataset, default_collate, "--x"))
        assert list(batches) == list(range(rank, 6, 2))
        assert torch.cat([labels for _, labels in batches.values()]).tolist() == [index % 5 for index in expected]
    assert len(seen) == 17


def test_a_broken_archive_is_one_line(tmp_path: Path, parent: Path, model: Any, call: Any) -> None:
    shutil.copytree(parent / "animals", tmp_path / "animals")
    path = tmp_path / "animals/test/1.tar"
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"none"))
    words = ["--dataset", "wds/animals", "--dataset_root", tmp_path / "animals", "--output", tmp_path / "result.json"]
    for workers in (0, 1):
        code, _, err = call(SCRIPT, *model, *words, "--num_workers", workers)
        assert (code, "1.tar/0009.png: cannot be read (not an image" in err.splitlines()[-1]) == (2, True)


def test_retrieval_of_both_has_a_row_each(tmp_path: Path, parent: Path, model: Any, call: Any) -> None:
    words = ["--task", "zeroshot_retrieval", "--dataset", *RETRIEVAL, "--dataset_root", parent]
    tables = [tmp_path / "table.md", tmp_path / "table.csv"]
    code, out, _ = call(SCRIPT, *model, *words, "--output", tmp_path / "{dataset}.json", "--table", *tables)
    assert code == 0
    headers, *rows = read_csv(tables[1])
    metrics = [f"{side} @{k}" for k in (1, 5, 10) for side in ("image", "text")]
    assert headers == ["recall (%)", *metrics]
    for dataset, row in zip(RETRIEVAL, rows, strict=True):
        found = read(tmp_path / f"{dataset}.json")["metrics"].values()
        assert row == [dataset, *(f"{100 * value:.2f}" for value in found)]
    assert tables[0].read_text() in out


def test_three_processes_give_the_numbers_of_one(
    tmp_path: Path, parent: Path, model: Any, call: Any, launch: Any
) -> None:
    words = [*model, "--dataset", "imagenet-r", "objectnet", "wds/animals", "--dataset_root", parent]
    words += ["--batch_size", "17", "--output"]
    run = launch(3, SCRIPT, *words, tmp_path / "three")
    assert run.returncode == 0, run.stderr
    assert call(SCRIPT, *words, tmp_path / "one")[0] == 0
    for name in ("imagenet-r", "objectnet", "wds-animals"):
        one, three = (read(tmp_path / n / f"{name}_zeroshot_classification.json") for n in ("one", "three"))
        assert {**one, "seconds": 0} == {**three, "seconds": 0}


def test_speed_stands_beside_clip_benchmark(tmp_path: Path, model: Any, call: Any, launch: Any) -> None:
    build_scenes(tmp_path / "scenes", num_train=2, num_val=2, num_test=60, num_pairs=21)
    words = [*model, "--num_rounds", 1, "--dataset", "digit_scenes", "--dataset_root", tmp_path / "scenes"]
    words += ["--json", tmp_path / "speed.json"]
    code, out, err = call("eval/eval_speed.py", *words)
    assert code == 0, err
    of_one = read(tmp_path / "speed.json")["measured"]
    assert list(of_one) == ["clip_benchmark", "ours, 1 process"]
    assert "| clip_benchmark  |" in out
    run = launch(2, "eval/eval_speed.py", *words, "--task", "zeroshot_retrieval")
    assert run.returncode == 0, run.stderr
    of_two = read(tmp_path / "speed.json")["measured"]
    assert list(of_two) == ["clip_benchmark", "ours, 1 process", "ours, 2 processes"]
    for measured in (of_one, of_two):
        assert len({one["quality"] for one in measured.values()}) == 1


@pytest.mark.parametrize("dataset", fake_benchmarks.PIECES)
def test_a_missing_piece_is_named_and_nothing_is_made(
    tmp_path: Path, parent: Path, model: Any, call: Any, dataset: str
) -> None:
    piece, said = fake_benchmarks.PIECES[dataset]
    root = tmp_path / "data" / dataset.removeprefix("wds/")
    shutil.copytree(parent / root.name, root, copy_function=lambda source, target: Path(target).hardlink_to(source))
    shutil.rmtree(root / piece) if (root / piece).is_dir() else (root / piece).unlink()
    before = sorted(tmp_path.rglob("*"))
    words = ["--task", task_of(dataset), "--dataset", dataset, "--dataset_root", root]
    code, out, err = call(SCRIPT, *model, *words, "--output", tmp_path / "out" / "result.json")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: --dataset_root: {root}")
    assert said in err
    assert re.search(r"\(get it: (https?://|clip_benchmark's documentation)", err)
    assert sorted(tmp_path.rglob("*")) == before


def test_all_that_is_missing_is_named_before_any_work(tmp_path: Path, parent: Path, model: Any, call: Any) -> None:
    words = ["--dataset", "imagenet-a", "imagenet-o", "imagenet-r", "cifar10", "--dataset_root", parent]
    code, out, err = call(SCRIPT, *model, *words, "--output", tmp_path / "out")
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert f"{parent}/imagenet-o: no such folder" in err
    assert f"{parent}/cifar10: no such folder" in err
    assert "imagenet-a.tar" not in err


def test_only_download_calls_the_network(
    tmp_path: Path, parent: Path, model: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, calls = tmp_path / "imagenet-a", []

    def fetch(command: str, shell: bool) -> None:
        calls.append(command)
        if command.startswith("mv"):
            shutil.copytree(parent / "imagenet-a", root)

    monkeypatch.setattr("clip_benchmark.datasets.builder.call", fetch)
    words = [*model, "--dataset", "imagenet-a", "--dataset_root", root, "--output", tmp_path / "result.json"]
    assert call(SCRIPT, *words)[0] == 2
    assert calls == []
    assert call(SCRIPT, *words, "--download")[0] == 0
    assert [command.split()[0] for command in calls] == ["wget", "tar", "mv"]
    shutil.rmtree(root)
    (tmp_path / "result.json").unlink()
    monkeypatch.setattr("clip_benchmark.datasets.builder.call", lambda command, shell: None)
    code, _, err = call(SCRIPT, *words, "--download")
    assert (code, "--download: clip_benchmark could not download it: " in err.splitlines()[-1]) == (2, True)


def test_a_tower_without_text_takes_a_saved_classifier(tmp_path: Path, parent: Path, call: Any) -> None:
    tower = ["--model", "test_vit", "--model_type", "timm", "--num_workers", 0]
    words = [*tower, "--dataset", "imagenet-r", "--dataset_root", parent / "imagenet-r"]
    words += ["--output", tmp_path / "result.json"]
    code, _, err = call(SCRIPT, *words)
    assert (code, "has no text encoder" in err, "--load_clfs" in err) == (2, True, True)
    header = {"frame": "open_clip", "model": "ViT-g-14", "dataset": "imagenet-r", "language": "en"}
    for width in (64, 65):
        torch.manual_seed(0)
        save_classifier(tmp_path / f"{width}.safetensors", torch.randn(width, 200), header)
    code, _, err = call(SCRIPT, *words, "--load_clfs", tmp_path / "65.safetensors")
    assert (code, "embeddings of width 65, but the image embeddings of test_vit have width 64" in err) == (2, True)
    assert call(SCRIPT, *words, "--load_clfs", tmp_path / "64.safetensors")[0] == 0
    assert read(tmp_path / "result.json")["num_images"] == 200
