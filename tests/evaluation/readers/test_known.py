"""Data sets that open their images themselves are read by the rule of all others."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from conftest import refusal
from PIL import Image
from torch import Tensor

from amp.data.pixels import read_rgb
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.readers.known import Reopened, tidy
from amp.evaluation.sharding import ShardedBatches

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"


def rendered_sst2(root: Path) -> list[Path]:
    files = [root / "rendered-sst2/test" / name / "0.png" for name in ("negative", "positive")]
    for name in ("negative", "positive"):
        (root / "rendered-sst2/test" / name).mkdir(parents=True)
    return files


def dtd(root: Path) -> list[Path]:
    folder, names = root / "dtd/dtd", [f"{kind}/{kind}_{index}.jpg" for kind in ("banded", "woven") for index in (0, 1)]
    (folder / "labels").mkdir(parents=True)
    (folder / "labels/test1.txt").write_text("\n".join(names) + "\n")
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
    return [folder / "images" / name for name in names]


def pets(root: Path) -> list[Path]:
    folder = root / "oxford-iiit-pet"
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "annotations/test.txt").write_text("Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n")
    return [folder / "images" / f"{name}.jpg" for name in ("Abyssinian_1", "beagle_2")]


def voc2007(root: Path) -> list[Path]:
    folder = root / "VOCdevkit/VOC2007"
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/aeroplane_test.txt").write_text("1 1\n2 -1\n")
    for name, kind in (("1", "aeroplane"), ("2", "dog")):
        box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>6</xmax><ymax>7</ymax></bndbox>"
        text = f"<annotation><object><name>{kind}</name>{box}</object></annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    return [folder / "JPEGImages" / f"{name}.jpg" for name in ("1", "2")]


LAYOUTS: dict[str, Callable[[Path], list[Path]]] = {
    "renderedsst2": rendered_sst2,
    "dtd": dtd,
    "pets": pets,
    "voc2007": voc2007,
    "voc2007_multilabel": voc2007,
}


def _pixels(image: Image.Image) -> Any:
    return np.asarray(image)


def _same(a: Any, b: Any) -> bool:
    return bool((a == b).all()) if isinstance(a, Tensor) else bool(a == b)


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_are_opened_by_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    files = LAYOUTS[name](tmp_path)
    random = np.random.default_rng(0)
    for file in files:
        Image.fromarray(random.integers(0, 256, (9, 8, 3), np.uint8)).save(file, "PNG")
    benchmark = Benchmark("zeroshot_classification", name, str(tmp_path))
    own = benchmark.build(_pixels)
    assert isinstance(own, Reopened)
    with monkeypatch.context() as patch:
        patch.setattr("amp.evaluation.readers.known.tidy", lambda dataset, option: dataset)
        theirs = benchmark.build(_pixels)
    assert len(own) == len(theirs) == len(files)
    assert (own.classes, own.templates) == (theirs.classes, theirs.templates)
    for (image, label), (expected, their_label) in zip(own, theirs, strict=True):
        assert (image == expected).all()
        assert _same(label, their_label)
    Image.fromarray(random.integers(0, 65536, (9, 8), np.uint16)).save(files[0], "PNG")
    box = own.boxes[0] if own.boxes else (0, 0, 8, 9)
    assert (own[0][0] == np.asarray(read_rgb(files[0]).crop(box))).all()
    assert (own[0][0] < 255).mean() > 0.9  # Pillow would make most of it white
    files[1].write_bytes(EPS)
    said = refusal(lambda: list(ShardedBatches(4, 0).batches(own, list, "--dataset_root")))
    assert said == f"--dataset_root: {files[1]}: cannot be read (not an image of a known format)"


@pytest.mark.parametrize(
    "name",
    [
        *("Food101", "SUN397", "StanfordCars", "FGVCAircraft", "DTD", "OxfordIIITPet", "Flowers102", "GTSRB"),
        "RenderedSST2",
    ],
)
def test_torchvision_keeps_files_where_they_are_looked_for(name: str) -> None:
    kind = getattr(torchvision.datasets, name)
    source = inspect.getsource(kind.__getitem__)
    stand_in = kind.__new__(kind)
    stand_in.root, stand_in.transform, stand_in.target_transform = "root", _pixels, None
    stand_in.classes = stand_in.templates = ["a"]
    if "self._samples[" in source:
        stand_in._samples = [("a.jpg", 3)]
    else:
        assert "self._labels[" in source
        files = "_images" if "self._images[" in source else "_image_files"
        assert f"self.{files}[" in source
        stand_in._labels = [3]
        setattr(stand_in, files, [Path("a.jpg")])
    assert tidy(stand_in, "--x").samples == [("a.jpg", 3)]
