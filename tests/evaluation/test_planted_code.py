"""Nothing of a data set runs: a pickle planted in every file and member that evaluation opens is ignored or refused."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusal
from helpers import fake_benchmarks
from torch.utils.data import default_collate
from torchvision.transforms.functional import pil_to_tensor

from amp.errors import UserError
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.sharding import ShardedBatches

FIELDS = (
    *("pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "ten", "tb", "mp", "msg", "json", "yaml", "h5", "mat"),
    *(
        "cls2",
        "index",
        "id",
        "txt",
        "text",
        "transcript",
        "cbor",
        "mp4",
        "wav",
        "pyd.gz",
        "gz",
        "0.pyd",
        "bin",
        "b",
        "safetensors",
    ),
)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What the payload makes where it runs."""
    return tmp_path / "ran"


@pytest.fixture
def payload(ran: Path) -> bytes:
    content = pickle.dumps(Payload(ran))
    pickle.loads(content)
    assert ran.exists()
    ran.unlink()
    return content


def plant(root: Path, fields: dict[str, bytes]) -> None:
    """Members beside those of every sample of the first shard; of one name, in their place."""
    with tarfile.open(root / "test/0.tar") as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive]
    with tarfile.open(root / "test/0.tar", "w") as archive:
        for key in dict.fromkeys(name.partition(".")[0] for name, _ in members):
            own = {name.partition(".")[2]: content for name, content in members if name.startswith(f"{key}.")}
            for field, content in {**own, **fields}.items():
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def read(root: Path, task: str = "classification", name: str = "wds/animals") -> list[Any]:
    dataset = Benchmark(f"zeroshot_{task}", name, str(root)).build(pil_to_tensor)
    return list(ShardedBatches(4, 0).batches(dataset, default_collate, "--dataset_root"))


def test_other_members_of_a_shard_are_not_opened(tmp_path: Path, ran: Path, payload: bytes) -> None:
    root = fake_benchmarks.build("wds/animals", tmp_path)
    plain = read(root)
    plant(root, {field: payload for field in FIELDS})
    found = read(root)
    assert not ran.exists()
    for (_, (images, labels)), (_, (planted_images, planted_labels)) in zip(plain, found, strict=True):
        assert torch.equal(images, planted_images)
        assert torch.equal(labels, planted_labels)


@pytest.mark.parametrize(("kind", "field"), [("classification", "cls"), ("multilabel", "npy"), ("retrieval", "txt")])
def test_the_targets_of_a_shard_are_refused(tmp_path: Path, ran: Path, payload: bytes, kind: str, field: str) -> None:
    root = fake_benchmarks.build("wds/animals", tmp_path)
    (root / "dataset_type.txt").write_text(kind)
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(ran)], object), allow_pickle=True)
    task = "retrieval" if kind == "retrieval" else "classification"
    for content in (payload, objects.getvalue()):
        plant(root, {field: content})
        assert f"test/0.tar/0000.{field}: " in refusal(lambda: read(root, task))
    assert not ran.exists()


def test_images_of_a_shard_are_no_pickles(tmp_path: Path, ran: Path, payload: bytes) -> None:
    root = fake_benchmarks.build("wds/animals", tmp_path)
    plant(root, {"png": payload})
    assert "test/0.tar/0000.png: cannot be read (not an image of a known format)" in refusal(lambda: read(root))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_pickles_of_cifar_are_read_only_with_their_checksums(
    tmp_path: Path, ran: Path, payload: bytes, name: str
) -> None:
    folder = tmp_path / "data" / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    folder.mkdir(parents=True)
    for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", "train", "test", "meta"):
        (folder / file).write_bytes(payload)
    assert f"cannot be read as {name}" in refusal(lambda: read(tmp_path / "data", name=name))
    assert not ran.exists()


@pytest.mark.slow
def test_the_meta_file_of_imagenet_is_no_code(tmp_path: Path, ran: Path, payload: bytes) -> None:
    root = fake_benchmarks.build("imagenet1k", tmp_path)
    torch.save(Payload(ran), tmp_path / "payload.pt")
    for content in (payload, (tmp_path / "payload.pt").read_bytes()):
        (root / "meta.bin").write_bytes(content)
        assert "cannot be read as imagenet1k" in refusal(lambda: read(root, name="imagenet1k"))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["mnist", "flowers", "cars", "stl10", "pcam"])
def test_files_of_other_kinds_are_no_code(tmp_path: Path, ran: Path, payload: bytes, name: str) -> None:
    places = {
        "mnist": ["MNIST/processed/test.pt", "MNIST/processed/training.pt", "MNIST/raw/t10k-images-idx3-ubyte"],
        "flowers": ["flowers-102/setid.mat", "flowers-102/imagelabels.mat", "flowers-102/jpg/image_00001.jpg"],
        "cars": ["stanford_cars/devkit/cars_meta.mat", "stanford_cars/cars_test_annos_withlabels.mat"],
        "stl10": ["stl10_binary/test_X.bin", "stl10_binary/test_y.bin", "stl10_binary/class_names.txt"],
        "pcam": ["pcam/camelyonpatch_level_2_split_test_x.h5", "pcam/camelyonpatch_level_2_split_test_y.h5"],
    }
    for place in places[name]:
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / place).write_bytes(payload)
    (tmp_path / "data/stanford_cars/cars_test").mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError):
        read(tmp_path / "data", name=name)
    assert not ran.exists()


def test_annotations_and_captions_are_no_pickles(tmp_path: Path, ran: Path, payload: bytes) -> None:
    for name, file in (("mscoco_captions", "coco_test_karpathy.json"), ("flickr30k", "flickr30k_test_karpathy.txt")):
        root = fake_benchmarks.build(name, tmp_path)
        (root / file).write_bytes(payload)
        assert "cannot be read as" in refusal(lambda root=root, name=name: read(root, "retrieval", name))
        shutil.rmtree(root)
    (tmp_path / "xtd").mkdir()
    (tmp_path / "xtd/xtd10-en.json").write_text(json.dumps({"image_paths": ["a"], "annotations": ["b"]}))
    assert "a is missing" in refusal(lambda: read(tmp_path / "xtd", "retrieval", "xtd10"))
    assert not ran.exists()
