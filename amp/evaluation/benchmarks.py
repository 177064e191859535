"""The data of the zero-shot measurements: every dataset of clip_benchmark by name, the digit scenes, one's own images.

Light to import: a mistake in a name or a folder answers before torch is loaded.
"""

import importlib.util
import io
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amp.errors import UserError, check_extra, nearest, several
from amp.evaluation.dataset_files import NEEDS, Task, family, find_missing, find_needs
from amp.evaluation.readers.class_folders import class_names, folder_to_test
from amp.evaluation.readers.texts import TEMPLATES, name_classes, read_pairs, read_templates
from amp.run.console import say

_ENGLISH_ONLY = ("digit_scenes", "mscoco_captions")
_OWN = ("imagefolder", "captions")
_UNREADABLE = (OSError, RuntimeError, LookupError, TypeError, ValueError, AssertionError)


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Attributes:
        task: 'zeroshot_classification' or 'zeroshot_retrieval'.
        dataset: clip_benchmark's name of it, 'digit_scenes', or of one's own 'imagefolder' or 'captions'.
        root: its folder.
        language: of the class names and templates, or of the captions.
        download: let clip_benchmark fetch what is missing; nothing else touches the network.
        classnames, templates: files of imagefolder, as of `readers.texts`; None for the folders' names and a plain one.
        captions: the file of 'captions'.
    """

    task: Task
    dataset: str
    root: str
    language: str = "en"
    download: bool = False
    classnames: str | None = None
    templates: str | None = None
    captions: str | None = None

    def check(self) -> None:
        """Raises UserError unless the dataset and its language are known and its files are in place."""
        self._check_name()
        if self.dataset not in ("digit_scenes", *_OWN):
            check_extra("--dataset", self.dataset, "eval", "clip_benchmark")
        self._check_language()
        if (missing := self.missing()) and not self.download:
            raise UserError("--dataset_root", missing)
        if self.dataset == "imagefolder":
            self._prompts(class_names("--dataset_root", folder_to_test(self.root)))
        if self.dataset == "captions":
            if self.captions is None:
                raise UserError("--captions", "missing; give the .csv, .tsv or .jsonl file of the captions")
            read_pairs("--captions", self.captions)

    def _prompts(self, folders: list[str]) -> tuple[list[str], list[str]]:
        """Class names and templates of class folders of one's own."""
        classes = name_classes(folders, "--classnames", self.classnames)
        return classes, read_templates("--templates", self.templates) if self.templates else [*TEMPLATES]

    @property
    def brings_files(self) -> bool:
        """Whether `build` may make or fetch images."""
        return self.download or self.dataset == "digit_scenes"

    def missing(self) -> str | None:
        """What the folder lacks, and where to get it; None when it lacks nothing."""
        if self.dataset == "digit_scenes":
            return None
        if self.dataset in _OWN:
            return None if Path(self.root).is_dir() else f"{self.root}: no such folder"
        return find_missing(self.task, self.dataset, Path(self.root), self.language)

    def build(self, transform: Callable[[Any], Any]) -> Any:
        """The test split: (image, label or captions) by index, or a stream of them; with `classes` and `templates`.

        The main process goes first, since torchvision writes `meta.bin` where ImageNet has only its devkit, and
        since `download` writes more.
        Raises:
            UserError: the files do not make this dataset.
        """
        from amp.run.world import world

        self.check()
        built: list[Any] = []
        world().from_main(lambda: built.append(self._build(transform)))
        return built[0] if built else self._build(transform)

    def _check_name(self) -> None:
        key, known = family(self.dataset), NEEDS[self.task]
        if key in known:
            return
        for task in NEEDS:
            if key in NEEDS[task] and task != self.task:
                raise UserError("--dataset", f"{self.dataset} belongs to --task {task}, not {self.task}")
        names = ", ".join(f"{k}NAME" if k.endswith("/") else k for k in known)
        raise UserError("--dataset", f"no {self.dataset!r}{nearest(self.dataset, known)} (known: {names})")

    def _check_language(self) -> None:
        if self.dataset in _OWN and self.language != "en":
            raise UserError(
                "--language", f"{self.language}: not used with {self.dataset}, whose texts are your own; leave it out"
            )
        if self.dataset in _ENGLISH_ONLY + _OWN:
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
            raise UserError(
                "--language", f"{self.dataset} has no language {self.language!r} (known: {', '.join(known)})"
            )

    def _build(self, transform: Callable[[Any], Any]) -> Any:
        try:
            build = {"digit_scenes": self._build_scenes, **dict.fromkeys(_OWN, self._build_own)}
            dataset = build.get(self.dataset, self._build_known)(transform)
        except UserError:
            raise
        except ImportError as error:
            raise UserError("--dataset", f"{self.dataset} needs the Python package {error.name}") from None
        except Exception as error:  # a damaged file fails in any way
            told = "" if isinstance(error, pickle.UnpicklingError) else f": {error}"
            reason = f"{type(error).__name__}{told}".splitlines()[0]
            raise UserError("--dataset_root", f"{self.root}: cannot be read as {self.dataset} ({reason})") from None
        if self.dataset == "imagenetv2":
            dataset.fnames.sort()  # listed by a glob, in the order of the file system
        return dataset

    def _build_known(self, transform: Callable[[Any], Any]) -> Any:
        from clip_benchmark.datasets.builder import build_dataset

        known = dict(split="test", download=self.download, language=self.language, task=self.task)
        if self.missing():
            say(f"downloading {self.dataset} to {self.root}")
            with suppress(*_UNREADABLE, SystemExit):  # what is missing then says more
                build_dataset(self.dataset, self.root, transform, **known)
            if missing := self.missing():
                raise UserError("--download", f"clip_benchmark could not download it: {missing}")
        root = Path(self.root)
        if self.dataset.startswith("wds/"):
            from amp.evaluation.readers.shards import Shards

            return Shards(root, self.task, transform)
        if self.task == "zeroshot_retrieval":
            from amp.evaluation.readers.captions import open_captions

            needs = find_needs(self.task, self.dataset, self.language)
            images = root / needs[0] if len(needs) > 1 else root
            return open_captions(self.dataset, images, root / needs[-1], transform)
        from amp.evaluation.readers.known import tidy

        with _quiet():
            dataset = build_dataset(self.dataset, self.root, transform, **known)
        return tidy(dataset, "--dataset_root")

    def _build_own(self, transform: Callable[[Any], Any]) -> Any:
        from amp.evaluation.readers.captions import open_captions
        from amp.evaluation.readers.folders import ClassFolders

        if self.dataset == "captions":
            return open_captions(self.dataset, Path(self.root), Path(str(self.captions)), transform)
        folder = folder_to_test(self.root)
        if folder != self.root:
            say(f"imagefolder: the class folders of {folder}")
        dataset: Any = ClassFolders("--dataset_root", folder, transform)
        dataset.classes, dataset.templates = self._prompts(dataset.classes)
        return dataset

    def _build_scenes(self, transform: Callable[[Any], Any]) -> Any:
        from amp.data.scenes import CLASS_NAMES, build_scenes
        from amp.evaluation.readers.captions import open_captions
        from amp.evaluation.readers.folders import ClassFolders

        root = Path(self.root)
        build_scenes(root)
        if self.task == "zeroshot_retrieval":
            return open_captions(self.dataset, root / "pairs", root / "annotations/captions_pairs.json", transform)
        dataset: Any = ClassFolders("--dataset_root", root / "test", transform)
        if len(dataset.classes) != len(CLASS_NAMES):
            raise UserError(
                "--dataset_root", f"{root}/test: {len(dataset.classes)} class folders of {len(CLASS_NAMES)}"
            )
        dataset.classes, dataset.templates = list(CLASS_NAMES), ["a {c}"]
        return dataset


def check_all(benchmarks: Iterable[Benchmark]) -> None:
    """Raises one UserError that names what each of the benchmarks lacks."""
    problems: list[UserError] = []
    for benchmark in benchmarks:
        try:
            benchmark.check()
        except UserError as error:
            problems.append(error)
    if problems:
        raise several(problems)


@contextmanager
def _quiet() -> Iterator[None]:
    """Every process would print that it reads the annotations, and warn that a dataset has no splits."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
