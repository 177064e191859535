"""Fake copies of the paper's datasets, as they lie on disk: every folder and file, of tiny images."""

import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

NUM_CLASSES = {"imagenet1k": 1000, "imagenet_sketch": 1000, "imagenet-a": 200, "imagenet-r": 200, "objectnet": 113}


def write_image(path: Path, seed: int) -> None:
    """Coloured squares of 8 pixels, 32 x 32 in all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(path)


def _link_images(paths: Iterable[Path], originals: Path) -> None:
    """Eleven images by turns, as many links to them: ten thousand files would take long to write."""
    suffix = ""
    for index, path in enumerate(paths):
        suffix = suffix or path.suffix
        original = originals / f"{index % 11}{suffix}"
        if not original.exists():
            write_image(original, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(original)


def _wnids(count: int) -> list[str]:
    return [f"n{label:08d}" for label in range(count)]


def imagenet1k(root: Path, originals: Path) -> None:
    """`meta.bin` as torchvision writes it, and one image a class."""
    _link_images((root / "val" / wnid / f"{wnid}.jpeg" for wnid in _wnids(1000)), originals)
    torch.save(({wnid: (wnid,) for wnid in _wnids(1000)}, _wnids(1000)), root / "meta.bin")


def imagenetv2(root: Path, originals: Path) -> None:
    """Ten images a class, made in no order."""
    order = np.random.default_rng(0).permutation(10_000)
    folder = root / "ImageNetV2-matched-frequency"
    _link_images((folder / str(index // 10) / f"{index % 10}.jpeg" for index in order), originals)


def _class_folders(count: int) -> Callable[[Path, Path], None]:
    def build(root: Path, originals: Path) -> None:
        _link_images((root / wnid / f"{wnid}.jpeg" for wnid in _wnids(count)), originals)

    return build


def objectnet(root: Path, originals: Path) -> None:
    """113 classes that ImageNet has, two that it has not, and the four mappings."""
    labels = [f"thing {index}" for index in range(115)]
    _link_images((root / "objectnet-1.0/images" / label.replace(" ", "_") / "0.png" for label in labels), originals)
    mappings = {
        "folder_to_objectnet_label.json": {label.replace(" ", "_"): label for label in labels},
        "objectnet_to_imagenet_1k.json": {label: f"name {index}" for index, label in enumerate(labels[:113])},
        "pytorch_to_imagenet_2012_id.json": {str(index): index for index in range(1000)},
    }
    for name, mapping in mappings.items():
        (root / name).write_text(json.dumps(mapping))
    (root / "imagenet_to_label_2012_v2").write_text("".join(f"name {index}\n" for index in range(1000)))


def _captions() -> dict[str, list[str]]:
    """23 images of one to four captions."""
    return {f"{index}.jpg": [f"thing {index} {n}, seen" for n in range(1 + index % 4)] for index in range(23)}


def mscoco_captions(root: Path, originals: Path) -> None:
    """`val2014` and the captions of Karpathy's test split."""
    _link_images((root / "val2014" / name for name in _captions()), originals)
    images = [{"id": index, "file_name": name} for index, name in enumerate(_captions())]
    pairs = [(index, text) for index, texts in enumerate(_captions().values()) for text in texts]
    annotations = [{"id": n, "image_id": index, "caption": text} for n, (index, text) in enumerate(pairs)]
    (root / "coco_test_karpathy.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def flickr30k(root: Path, originals: Path) -> None:
    """Images beside the captions: a header, then `x.jpg,caption`."""
    _link_images((root / name for name in _captions()), originals)
    lines = [f"{name},{text}\n" for name, texts in _captions().items() for text in texts]
    (root / "flickr30k_test_karpathy.txt").write_text("".join(["image,caption\n", *lines]))


def webdataset(root: Path, originals: Path) -> None:
    """Two shards of 9 and 8 images of five classes."""
    (root / "test").mkdir(parents=True)
    (root / "test/nshards.txt").write_text("2")
    (root / "classnames.txt").write_text("cat\ndog\nhog\nfox\ncow\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    for shard, indices in enumerate((range(9), range(9, 17))):
        with tarfile.open(root / f"test/{shard}.tar", "w") as tar:
            for index in indices:
                write_image(originals / f"{index}.png", index)
                (originals / f"{index}.cls").write_text(str(index % 5))
                for suffix in ("png", "cls"):
                    tar.add(originals / f"{index}.{suffix}", f"{index:04d}.{suffix}")


BUILDERS: dict[str, Callable[[Path, Path], None]] = {
    "imagenet1k": imagenet1k,
    "imagenet-a": _class_folders(200),
    "imagenet-r": _class_folders(200),
    "imagenetv2": imagenetv2,
    "imagenet_sketch": _class_folders(1000),
    "objectnet": objectnet,
    "mscoco_captions": mscoco_captions,
    "flickr30k": flickr30k,
    "wds/animals": webdataset,
}
# Of each, a piece that may be missing, and how the message names it.
PIECES = {
    "imagenet1k": ("val/n00000007", "val: 999 class folders; imagenet1k has 1000"),
    "imagenet-a": ("n00000007", "199 class folders; imagenet-a has 200"),
    "imagenet-r": ("n00000007", "199 class folders; imagenet-r has 200"),
    "imagenetv2": ("ImageNetV2-matched-frequency/7/3.jpeg", "9999 of 10000 .jpeg files"),
    "imagenet_sketch": ("n00000007", "999 class folders; imagenet_sketch has 1000"),
    "objectnet": ("objectnet-1.0/images/thing_7", "objectnet-1.0/images/thing_7 is missing"),
    "mscoco_captions": ("val2014/7.jpg", "val2014/7.jpg is missing"),
    "flickr30k": ("7.jpg", "7.jpg is missing"),
    "wds/animals": ("test/1.tar", "test/1.tar is missing"),
}


def build(dataset: str, parent: Path) -> Path:
    """The fake copy, at `parent`/DATASET."""
    root = parent / dataset.removeprefix("wds/")
    originals = parent / "originals" / root.name
    originals.mkdir(parents=True)
    BUILDERS[dataset](root, originals)
    return root
