"""The data of the zero-shot measurements: every dataset of clip_benchmark by name, and the digit scenes.

Light to import: a mistake in a name or a folder answers before torch is loaded.
"""

import importlib.util
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from amp.errors import UserError, nearest
from amp.runs import say

if TYPE_CHECKING:
    from amp.distributed import World

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
# What must be in the folder (globs, '|' between alternatives). Where it is missing, clip_benchmark makes folders and
# calls wget, kaggle or gdown, whatever `download` says. A name that ends in '/' is the prefix of many.
NEEDS: dict[Task, dict[str, tuple[str, ...]]] = {
    "zeroshot_classification": {
        "digit_scenes": (),
        **dict.fromkeys(("imagenet1k", "imagenet-w", "babel_imagenet"), _IMAGENET),
        "imagenet1k-unverified": ("val",),
        "imagenetv2": ("ImageNetV2-matched-frequency",),
        "objectnet": _OBJECTNET,
        **dict.fromkeys(("voc2007", "voc2007_multilabel"), ("VOCdevkit/VOC2007",)),
        "caltech101": ("caltech101",),
        "eurosat": ("eurosat",),
        "fer2013": ("test",),
        **dict.fromkeys(_FOLDER_ONLY, ()),
        "wds/": ("test/nshards.txt",),
        "tfds/": _TFDS,
        "vtab/": _TFDS,
    },
    "zeroshot_retrieval": {
        "digit_scenes": (),
        "mscoco_captions": ("val2014", "coco_test_karpathy.json"),
        "flickr30k": ("flickr30k_test_{karpathy}.txt",),
        "flickr8k": ("flickr8k_test_{karpathy}.txt",),
        "flickr30k-200": ("flickr30k_200-{language}.json",),
        "crossmodal3600": ("crossmodal3600_captions-{language}.json",),
        "multilingual_mscoco_captions": ("multilingual_mscoco_captions-{language}.json",),
        "xtd10": ("xtd10-{language}.json",),
        "xtd200": ("xtd200-{language}.json",),
        "wds/": ("test/nshards.txt",),
    },
}
_ENGLISH_ONLY = ("digit_scenes", "mscoco_captions")
# Their labels are places among the sorted class folders: one folder short would shift every label after it.
_LABELS_BY_FOLDER = (
    *("imagenet1k", "imagenet1k-unverified", "imagenet_sketch", "imagenet-a", "imagenet-r", "imagenet-o"),
    *("fer2013", "digit_scenes"),
)
_IMAGENETV2_SIZE = 10_000


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Attributes:
        task: 'zeroshot_classification' or 'zeroshot_retrieval'.
        dataset: clip_benchmark's name of it, or 'digit_scenes'.
        root: its folder.
        language: of the class names and templates, or of the captions.
    """

    task: Task
    dataset: str
    root: str
    language: str = "en"

    def check(self) -> None:
        """Raises UserError unless the dataset and its language are known and its files are in place."""
        needs = self._needs()
        self._check_language()
        root = Path(self.root)
        if self.dataset == "digit_scenes":
            return
        if not root.is_dir():
            raise UserError(f"--dataset_root: {root}: no such folder")
        karpathy = "karpathy" if self.language == "en" else self.language
        for need in needs:
            patterns = need.format(language=self.language, karpathy=karpathy).split("|")
            if not any(True for pattern in patterns for _ in root.glob(pattern)):
                raise UserError(f"--dataset_root: {root}: {self.dataset} needs {' or '.join(patterns)} in it; missing")
        if self.dataset == "imagenetv2":
            found = sum(1 for _ in (root / needs[0]).glob("**/*.jpeg"))
            if found != _IMAGENETV2_SIZE:
                raise UserError(f"--dataset_root: {root / needs[0]}: {found} of {_IMAGENETV2_SIZE} .jpeg files")

    def build(self, transform: Callable[[Any], Any], world: "World") -> Any:
        """The test split: (image, label or captions) by index, or a stream of them; with `classes` and `templates`.

        The main process goes first, since torchvision writes `meta.bin` where ImageNet has only its devkit.
        Raises:
            UserError: the files do not make this dataset.
        """
        self.check()
        built: list[Any] = []
        world.from_main(lambda: built.append(self._build(transform)))
        return built[0] if built else self._build(transform)

    def _needs(self) -> tuple[str, ...]:
        prefix, slash, _ = self.dataset.partition("/")
        key, known = prefix + slash, NEEDS[self.task]
        if key in known:
            return known[key]
        for task in NEEDS:
            if key in NEEDS[task] and task != self.task:
                raise UserError(f"--dataset: {self.dataset} is for --task {task}, not {self.task}")
        names = ", ".join(f"{k}NAME" if k.endswith("/") else k for k in known)
        raise UserError(f"--dataset: no {self.dataset!r}{nearest(self.dataset, known)} (known: {names})")

    def _check_language(self) -> None:
        if self.dataset in _ENGLISH_ONLY:
            known = ["en"]
        elif self.task == "zeroshot_classification" and self.dataset != "babel_imagenet":
            spec = importlib.util.find_spec("clip_benchmark")
            assert spec is not None
            assert spec.submodule_search_locations is not None
            folder, suffix = Path(spec.submodule_search_locations[0]) / "datasets", "_classnames.json"
            known = sorted(file.name.removesuffix(suffix) for file in folder.glob(f"*{suffix}"))
        else:
            return
        if self.language not in known:
            raise UserError(f"--language: {self.dataset} has no {self.language!r} (known: {', '.join(known)})")

    def _build(self, transform: Callable[[Any], Any]) -> Any:
        try:
            dataset = self._build_scenes(transform) if self.dataset == "digit_scenes" else self._build_known(transform)
        except UserError:
            raise
        except ImportError as error:
            raise UserError(f"--dataset: {self.dataset} needs the Python package {error.name}") from None
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, AssertionError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"--dataset_root: {self.root}: cannot be read as {self.dataset} ({reason})") from None
        if self.dataset == "imagenetv2":
            dataset.fnames.sort()  # listed by a glob, in the order of the file system
        if self.task == "zeroshot_classification" and self.dataset in _LABELS_BY_FOLDER:
            found = len({label for _, label in dataset.samples})
            if found != len(dataset.classes):
                raise UserError(
                    f"--dataset_root: {self.root}: {found} class folders; {self.dataset} has {len(dataset.classes)}"
                )
        return dataset

    def _build_known(self, transform: Callable[[Any], Any]) -> Any:
        from clip_benchmark.datasets.builder import build_dataset

        with _quiet():
            return build_dataset(
                self.dataset, self.root, transform, "test", download=False, language=self.language, task=self.task
            )

    def _build_scenes(self, transform: Callable[[Any], Any]) -> Any:
        from torchvision.datasets import CocoCaptions, ImageFolder

        from amp.scenes import CLASS_NAMES, build_scenes

        root = Path(self.root)
        if not root.is_dir():
            say(f"building the digit scenes in {root}")
        build_scenes(root)
        if self.task == "zeroshot_retrieval":
            with _quiet():
                return CocoCaptions(root / "pairs", str(root / "annotations/captions_pairs.json"), transform)
        dataset: Any = ImageFolder(root / "test", transform)
        dataset.classes, dataset.templates = list(CLASS_NAMES), ["a {c}"]
        return dataset


def _quiet() -> redirect_stdout[io.StringIO]:
    """Every process would print that it reads the annotations."""
    return redirect_stdout(io.StringIO())
