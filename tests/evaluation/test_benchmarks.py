"""The data of the zero-shot measurements: what must be on disk, said before clip_benchmark could fetch it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amp.errors import UserError
from amp.evaluation import dataset_files
from amp.evaluation.benchmarks import Benchmark


@pytest.mark.parametrize(
    ("task", "dataset", "present", "said"),
    [
        ("classification", "imagenet1k", ["val/"], "meta.bin or ILSVRC2012_devkit_t12.tar.gz"),
        ("classification", "imagenet1k", ["meta.bin"], "val is missing, which imagenet1k needs"),
        ("classification", "imagenetv2", [], "ImageNetV2-matched-frequency"),
        (
            "classification",
            "imagenetv2",
            ["ImageNetV2-matched-frequency/0/a.jpeg"],
            "1 class folders; imagenetv2 has 1000",
        ),
        ("classification", "objectnet", ["objectnet-1.0/images/"], "folder_to_objectnet_label.json"),
        ("classification", "imagenet-a", [], "0 class folders; imagenet-a has 200"),
        ("classification", "cifar10", [], "cannot be read as cifar10"),
        ("classification", "wds/x", [], "test/nshards.txt"),
        ("retrieval", "mscoco_captions", ["val2014/"], "coco_test_karpathy.json"),
        ("retrieval", "flickr30k", [], "flickr30k_test_karpathy.txt"),
        ("retrieval", "xtd10", [], "xtd10-en.json"),
        ("classification", "imagenet1kk", [], "did you mean 'imagenet1k'"),
        ("retrieval", "imagenet1k", [], "belongs to --task zeroshot_classification"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any, dataset: str, present: list[str], said: str
) -> None:
    monkeypatch.setattr("clip_benchmark.datasets.builder.call", pytest.fail)
    monkeypatch.setattr("requests.get", pytest.fail)
    for name in present:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=re.escape(said)):
        Benchmark(f"zeroshot_{task}", dataset, str(tmp_path)).build(None)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match=r"no such folder|did you mean|belongs to"):
        Benchmark(f"zeroshot_{task}", dataset, str(tmp_path / "none")).check()


@pytest.mark.slow
def test_imagenetv2_is_sorted(tmp_path: Path) -> None:
    (tmp_path / "one.jpeg").touch()
    for index in np.random.default_rng(0).permutation(10_000):
        path = tmp_path / "ImageNetV2-matched-frequency" / str(index // 10) / f"{index % 10}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(tmp_path / "one.jpeg")
    dataset = Benchmark("zeroshot_classification", "imagenetv2", str(tmp_path)).build(None)
    assert dataset.fnames == sorted(dataset.fnames)


@pytest.mark.parametrize(
    ("task", "dataset", "language", "said"),
    [
        ("classification", "imagenet1k", "fr", "no language 'fr' (known: ar, cn, en, it, jp)"),
        ("classification", "digit_scenes", "it", "known: en"),
        ("retrieval", "mscoco_captions", "de", "known: en"),
    ],
)
def test_an_unknown_language_is_named(task: Any, dataset: str, language: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Benchmark(f"zeroshot_{task}", dataset, "root", language).check()


def test_flickr_in_chinese_has_its_own_captions(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "flickr30k_test_zh.txt").write_text("image,caption\na.jpg,one, two\na.jpg,three\nb.jpg,four\n")
    dataset = Benchmark("zeroshot_retrieval", "flickr30k", str(tmp_path), "zh").build(None)
    assert dataset.samples == [(f"{tmp_path}/a.jpg", ["one, two", "three"]), (f"{tmp_path}/b.jpg", ["four"])]


def test_mistakes_are_found_before_torch_is_loaded(tmp_path: Path) -> None:
    code = "import sys, eval.eval_zsc; sys.exit('torch' in sys.modules or 'clip_benchmark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("dataset", "folder", "count"), [("imagenet-a", ".", 200), ("imagenet1k-unverified", "val", 1000)]
)
def test_class_folders_that_are_missing_are_named(tmp_path: Path, dataset: str, folder: str, count: int) -> None:
    names = dataset_files._class_names(dataset)
    assert len(names) == count
    for name in names:
        (tmp_path / folder / name).mkdir(parents=True)

    def missing() -> str:
        return dataset_files.find_missing("zeroshot_classification", dataset, tmp_path, "en") or ""

    assert missing() == ""
    gone = sorted(names)[5:9]
    for name in gone:
        (tmp_path / folder / name).rmdir()
    said = f"{count - 4} class folders; {dataset} has {count}; missing: {', '.join(gone[:3])} and 1 more (get it: "
    assert said in missing()
    for name in [*gone, "extra"]:
        (tmp_path / folder / name).mkdir()
    assert f"{count + 1} class folders; {dataset} has {count}; unexpected: extra (get it: " in missing()
