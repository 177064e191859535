"""What each dataset of clip_benchmark must have on disk, and where to get what is missing.

Where a piece is missing, clip_benchmark makes folders and calls wget, kaggle or gdown, whatever `download` says. So
every piece is looked for first, down to the class folders and the images that the annotations name.

Light to import: a mistake in a name or a folder answers before torch is loaded.
"""

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from amp.errors import UserError
from amp.evaluation.readers.class_folders import class_names, some

Task = Literal["zeroshot_classification", "zeroshot_retrieval"]

_IMAGENET = ("meta.bin|ILSVRC2012_devkit_t12.tar.gz", "val")
_OBJECTNET = (
    "objectnet-1.0/images",
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)
_TFDS = ("*/*/dataset_info.json|*/*/*/dataset_info.json",)
_FOLDER_ONLY = (
    *("cifar10", "cifar100", "food101", "sun397", "cars", "fgvc_aircraft", "dtd", "pets", "flowers", "mnist", "stl10"),
    *("gtsrb", "country211", "pcam", "renderedsst2", "dummy"),
    *("imagenet_sketch", "imagenet-a", "imagenet-r", "imagenet-o"),
)
# Globs, '|' between alternatives. A name that ends in '/' is the prefix of many.
NEEDS: dict[Task, dict[str, tuple[str, ...]]] = {
    "zeroshot_classification": {
        "digit_scenes": (),
        "imagefolder": (),
        **dict.fromkeys(("imagenet1k", "imagenet-w", "babel_imagenet"), _IMAGENET),
        "imagenet1k-unverified": ("val",),
        "imagenetv2": ("ImageNetV2-matched-frequency",),
        "objectnet": _OBJECTNET,
        **dict.fromkeys(("voc2007", "voc2007_multilabel"), ("VOCdevkit/VOC2007",)),
        "caltech101": ("caltech101",),
        "eurosat": ("eurosat",),
        "fer2013": ("test",),
        **dict.fromkeys(_FOLDER_ONLY, ()),
        "wds/": ("test/nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt"),
        "tfds/": _TFDS,
        "vtab/": _TFDS,
    },
    "zeroshot_retrieval": {
        "digit_scenes": (),
        "captions": (),
        "mscoco_captions": ("val2014", "coco_test_karpathy.json"),
        "flickr30k": ("flickr30k_test_{karpathy}.txt",),
        "flickr8k": ("flickr8k_test_{karpathy}.txt",),
        "flickr30k-200": ("flickr30k_200-{language}.json",),
        "crossmodal3600": ("crossmodal3600_captions-{language}.json",),
        "multilingual_mscoco_captions": ("multilingual_mscoco_captions-{language}.json",),
        "xtd10": ("xtd10-{language}.json",),
        "xtd200": ("xtd200-{language}.json",),
        "wds/": ("test/nshards.txt", "dataset_type.txt"),
    },
}
# The options that say of one's own images what others know of theirs, and which data set takes them.
OWN = {"classnames": "imagefolder", "templates": "imagefolder", "captions": "captions"}
# Folder of the class folders and their number. Labels are places among the sorted class folders: one folder short
# would shift every label after it.
_CLASS_FOLDERS = {
    **dict.fromkeys(("imagenet1k", "imagenet1k-unverified", "imagenet-w", "babel_imagenet"), ("val", 1000)),
    "imagenetv2": ("ImageNetV2-matched-frequency", 1000),
    "imagenet_sketch": (".", 1000),
    **dict.fromkeys(("imagenet-a", "imagenet-r", "imagenet-o"), (".", 200)),
    "fer2013": ("test", 7),
}
_IMAGENET_LIKE = ("imagenet1k", "imagenet1k-unverified", "imagenet-w", "babel_imagenet", "imagenet_sketch")
_SYNSETS = {  # timm's lists
    **dict.fromkeys(_IMAGENET_LIKE, "imagenet_synsets.txt"),
    "imagenet-a": "imagenet_a_synsets.txt",
    "imagenet-r": "imagenet_r_synsets.txt",
}
_IMAGENETV2_SIZE = 10_000
_CAPTIONS = "https://github.com/mehdidc/retrieval_annotations/releases/tag/1.0.0"
_ILSVRC = "https://image-net.org: ILSVRC2012_devkit_t12.tar.gz, and ILSVRC2012_img_val.tar sorted into class folders"
_SOURCES = {
    **dict.fromkeys(("imagenet1k", "imagenet1k-unverified", "imagenet-w", "babel_imagenet"), _ILSVRC),
    "imagenet-a": "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
    "imagenet-r": "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
    "imagenet-o": "https://people.eecs.berkeley.edu/~hendrycks/imagenet-o.tar",
    "imagenetv2": "https://huggingface.co/datasets/vaishaal/ImageNetV2: imagenetv2-matched-frequency.tar.gz",
    "imagenet_sketch": "https://drive.google.com/open?id=1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA",
    "objectnet": "https://objectnet.dev/downloads/objectnet-1.0.zip, whose mappings/ go beside objectnet-1.0/",
    "fer2013": "https://www.kaggle.com/datasets/msambare/fer2013",
    "mscoco_captions": f"http://images.cocodataset.org/zips/val2014.zip and {_CAPTIONS}",
    "flickr30k": f"https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset and {_CAPTIONS}",
    "flickr8k": f"https://www.kaggle.com/datasets/adityajn105/flickr8k and {_CAPTIONS}",
}
_ANYWHERE = "clip_benchmark's documentation names the source"


def family(dataset: str) -> str:
    """The key of a dataset in NEEDS: its name, or the prefix of many."""
    prefix, slash, _ = dataset.partition("/")
    return prefix + slash


def find_needs(task: Task, dataset: str, language: str) -> list[str]:
    """The globs of what a dataset needs in its folder, '|' between alternatives; of retrieval the annotations last."""
    karpathy = "karpathy" if language == "en" else language
    return [need.format(language=language, karpathy=karpathy) for need in NEEDS[task][family(dataset)]]


def find_missing(task: Task, dataset: str, root: Path, language: str) -> str | None:
    """What `root` lacks to be the dataset, and where to get it; None when it lacks nothing.

    Reads no image; creates nothing.
    """
    missing = _find_missing(task, dataset, root, language)
    return f"{missing} (get it: {_SOURCES.get(dataset, _ANYWHERE)})" if missing else None


def _find_missing(task: Task, dataset: str, root: Path, language: str) -> str | None:
    if not root.is_dir():
        return f"{root}: no such folder; {dataset} is read from one"
    needs = find_needs(task, dataset, language)
    for need in needs:
        patterns = need.split("|")
        if not any(True for pattern in patterns for _ in root.glob(pattern)):
            return f"{root}: {' or '.join(patterns)} is missing, which {dataset} needs"
    if dataset in _CLASS_FOLDERS:
        folder, count = _CLASS_FOLDERS[dataset]
        found = {path.name for path in (root / folder).iterdir() if path.is_dir()}
        if len(found) != count:
            named = _name_classes(found, _class_names(dataset))
            return f"{root / folder}: {len(found)} class folders; {dataset} has {count}{named}"
    try:
        return _find_missing_files(dataset, root, needs)
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"{root}: cannot be read as {dataset} ({reason})"


def _find_missing_files(dataset: str, root: Path, needs: list[str]) -> str | None:
    """What the dataset's own lists name and is not there."""
    if dataset == "imagenetv2":
        found = sum(1 for _ in (root / needs[0]).glob("**/*.jpeg"))
        return None if found == _IMAGENETV2_SIZE else f"{root / needs[0]}: {found} of {_IMAGENETV2_SIZE} .jpeg files"
    if dataset == "objectnet":
        folder_of = {label: folder for folder, label in _read_json(root / needs[1]).items()}
        return _first_missing(root / needs[0], (folder_of[label] for label in _read_json(root / needs[2])))
    if dataset == "mscoco_captions":
        images = _read_json(root / needs[1])["images"]
        return _first_missing(root / needs[0], (image["file_name"] for image in images))
    if dataset in ("flickr30k", "flickr8k"):
        lines = (root / needs[0]).read_text(encoding="utf-8").splitlines()[1:]
        return _first_missing(root, (f"{line.strip().split('.jpg,')[0]}.jpg" for line in lines if line.strip()))
    if dataset.startswith("wds/"):
        shards = int((root / "test/nshards.txt").read_text())
        return _first_missing(root / "test", (f"{index}.tar" for index in range(shards)))
    return None


def _class_names(dataset: str) -> set[str]:
    """A dataset's class folders, where timm has a list of them; found without importing it."""
    if dataset == "imagenetv2":
        return {str(index) for index in range(1000)}
    spec = find_spec("timm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]) / "data/_info" / _SYNSETS.get(dataset, "none")
    return set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()


def _name_classes(found: set[str], known: set[str]) -> str:
    missing, foreign = sorted(known - found), sorted(found - known) if known else []
    words = [f"missing: {some(missing)}" if missing else "", f"unexpected: {some(foreign)}" if foreign else ""]
    return "".join(f"; {word}" for word in words if word)


def check_class_folders(*folders: tuple[str, str]) -> None:
    """Raises UserError unless the two folders hold the same class folders.

    Args:
        folders: (option that named it, folder).
    """
    classes = [set(class_names(option, root)) for option, root in folders]
    for (option, root), own, other in zip(folders, classes, reversed(classes), strict=True):
        if missing := sorted(other - own):
            raise UserError(option, f"{root}: has no folder for the class {some(missing)} of the other folder")


def _first_missing(folder: Path, names: Iterable[str]) -> str | None:
    there = {path.name for path in folder.iterdir()}
    missing = [name for name in dict.fromkeys(names) if name not in there]
    more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
    return f"{folder / missing[0]}{more} missing" if missing else None


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
