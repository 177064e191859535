"""The options of the scripts that measure: what is asked, what is refused at once, what decides the numbers.

Light to import: `--help` and mistakes answer before torch is loaded.
"""

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from amp.errors import UserError
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.dataset_files import NEEDS, Task
from amp.evaluation.paper import DATASETS
from amp.registry import FRAMES
from amp.run.files import check_writable
from amp.run.options import count, decisive, option, read_options
from amp.settings.base import MOST_SIDE, MOST_WORKERS, Precision
from amp.settings.model import Frame


def _table_file(text: str) -> str:
    if Path(text).suffix not in (".md", ".csv"):
        raise ArgumentTypeError(f"{text}: expected a file that ends in .md or .csv")
    return text


def _batch_size(default: int) -> Any:
    return count("images in one batch on one process", default, least=1)


def _num_workers() -> Any:
    return count("loader workers per process", 4, least=0, aside=True, most=MOST_WORKERS)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model is measured, as `amp.models.open.open_tower` takes it."""

    model: str | None = option(
        "library's model name, an open_clip model JSON or a pruned/ folder", None, metavar="NAME|JSON|FOLDER"
    )
    model_type: Frame | None = option(
        "library of it (default: the folder's own, else open_clip)", None, choices=FRAMES.names
    )
    pretrained: str | None = option(
        "weights: a tag, a file or a pruned/ folder (default: random, seeded)", None, metavar="CKPT"
    )
    img_size: int | None = count(
        "side of a dense model's images (default: the model's own)", None, least=1, metavar="PIXELS", most=MOST_SIDE
    )

    @property
    def model_stem(self) -> str:
        """A short name of the model, for a file's name."""
        return Path(str(self.model or self.pretrained)).stem

    def decisive(self) -> dict[str, Any]:
        """The options that decide the numbers, as a result records them; --img_size only where it was given."""
        return {k: value for k, value in decisive(self).items() if k != "img_size" or value is not None}


@dataclass(frozen=True, kw_only=True)
class ZeroshotOptions(ModelOptions):
    """Of eval_zsc.py, for one data set."""

    text_pretrained: str | None = option(
        "dense weights, for the text tower of a published vision checkpoint (default: none)", None, metavar="CKPT"
    )
    batch_size: int = _batch_size(256)
    text_batch_size: int = count("prompts in one batch on one process", 80, least=1)
    task: Task = option("what is measured", "zeroshot_classification", choices=[*NEEDS])
    dataset: str = option(
        "clip_benchmark's names, or digit_scenes; 'paper' is the paper's six for classification",
        nargs="+",
        metavar="NAME",
    )
    dataset_root: str = option(
        "folder of the dataset; of several, DIR/NAME, or a pattern with {dataset} or {dataset_cleaned}", metavar="DIR"
    )
    download: bool = option(
        "let clip_benchmark fetch what is missing (default: touch no network)", False, aside=True, action="store_true"
    )
    language: str = option("of the class names or the captions", "en")
    save_clf: str | None = option(
        "write the text classifier here; of several datasets, a folder or a pattern with {dataset} (default: nowhere)",
        None,
        aside=True,
        metavar="FILE",
    )
    load_clfs: tuple[str, ...] = option(
        "use the mean of these text classifiers; of several datasets, a folder or a pattern with {dataset} "
        "(default: none)",
        (),
        aside=True,
        nargs="+",
        metavar="FILE",
    )
    precision: Precision | None = option(
        "of the encoders (default: bf16 on CUDA, fp32 on CPU)", None, choices=get_args(Precision)
    )
    num_workers: int = _num_workers()
    output: str | None = option(
        "the metrics; of several datasets, a folder or a pattern with {dataset} "
        "(default: out/eval/DATASET_TASK_MODEL_DIGEST.json)",
        None,
        aside=True,
        metavar="JSON",
    )
    table: tuple[str, ...] = option(
        "the table, as .md or .csv (default, of several datasets: TASK_MODEL_DIGEST.md and .csv beside the metrics)",
        (),
        aside=True,
        nargs="+",
        type=_table_file,
        metavar="FILE",
    )

    @property
    def benchmark(self) -> Benchmark:
        """The data set."""
        return Benchmark(self.task, self.dataset, self.dataset_root, self.language, self.download)

    @property
    def builds_classifier(self) -> bool:
        """Whether the class names become the text classifier."""
        return self.task == "zeroshot_classification" and not self.load_clfs

    def decisive(self) -> dict[str, Any]:
        """The options that decide the numbers; the prompts' batch size where there are prompts."""
        return {k: v for k, v in super().decisive().items() if k != "text_batch_size" or self.builds_classifier}


@dataclass(frozen=True, kw_only=True)
class KnnOptions(ModelOptions):
    """Of eval_knn.py."""

    dataset_root: str | None = option("folder that holds train/ and val/", None, aside=True, metavar="DIR")
    train_root: str = option(
        "training images in class folders (default: train/ of --dataset_root)", None, metavar="DIR"
    )
    val_root: str = option(
        "validation images in the same classes (default: val/ of --dataset_root)", None, metavar="DIR"
    )
    batch_size: int = _batch_size(256)
    num_workers: int = _num_workers()
    output: str | None = option(
        "the metrics (default: out/eval/DATASET_knn_MODEL_DIGEST.json)", None, aside=True, metavar="JSON"
    )


@dataclass(frozen=True, kw_only=True)
class EfficiencyOptions(ModelOptions):
    """Of eval_efficiency.py."""

    meta: bool = option(
        "count on meta tensors, measure no throughput (default: %(default)s)", False, action="store_true"
    )
    batch_size: int = count("images in a batch of the throughput", 64, least=1)
    num_rounds: int = count("batches measured, after 3 to warm up", 20, least=2)
    precision: Precision | None = option(
        "of the weights (default: bf16 on CUDA, fp32 on CPU)", None, choices=get_args(Precision)
    )
    json: str | None = option("write the numbers here (default: nowhere)", None, aside=True, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(ModelOptions):
    """Of eval_speed.py."""

    batch_size: int = _batch_size(64)
    task: Task = option("what is measured", "zeroshot_classification", choices=[*NEEDS])
    dataset: str = option("clip_benchmark's name of it, or digit_scenes", metavar="NAME")
    dataset_root: str = option("folder of the dataset", metavar="DIR")
    num_rounds: int = count("runs of each, by turns, after one to warm up", 3, least=1)
    num_workers: int = _num_workers()
    json: str | None = option("write the numbers here (default: nowhere)", None, aside=True, metavar="FILE")

    @property
    def benchmark(self) -> Benchmark:
        """The data set."""
        return Benchmark(self.task, self.dataset, self.dataset_root)


def _read(declared: type[ModelOptions], description: str | None) -> Any:
    parser, values = read_options(declared, description)
    if not (values["model"] or values["pretrained"]):
        parser.error("the following arguments are required: --model (or a pruned/ folder as --pretrained)")
    return parser, values


def parse_zeroshot(description: str | None) -> list[ZeroshotOptions]:
    """The options of each data set, as if it were the only one. Mistakes exit with 2, or raise UserError."""
    parser, values = _read(ZeroshotOptions, description)
    if values["task"] != "zeroshot_classification" and (values["save_clf"] or values["load_clfs"]):
        parser.error("argument --save_clf, --load_clfs: zeroshot_retrieval has no text classifier")
    names = [name for given in values["dataset"] for name in (DATASETS if given == "paper" else [given])]
    names = list(dict.fromkeys(names))
    return [_of_dataset(ZeroshotOptions(**{**values, "dataset": name}), len(names) > 1) for name in names]


def _of_dataset(options: ZeroshotOptions, several: bool) -> ZeroshotOptions:
    """The options with the folders and files of their own data set."""

    def own(key: str, pattern: str | None, suffix: str) -> str | None:
        return file_of(key, pattern, options.dataset, suffix, several) if pattern else None

    clfs = [file_of("--load_clfs", file, options.dataset, ".safetensors", several) for file in options.load_clfs]
    for file in clfs:
        if not Path(file).is_file():
            raise UserError("--load_clfs", f"{file}: no such file")
    return replace(
        options,
        dataset_root=root_of(options.dataset_root, options.dataset, several),
        save_clf=own("--save_clf", options.save_clf, ".safetensors"),
        output=own("--output", options.output, f"_{options.task}.json"),
        load_clfs=tuple(clfs),
    )


def root_of(pattern: str, dataset: str, several: bool) -> str:
    """The folder of a dataset, as in clip_benchmark: `{dataset}` is its name without 'wds/', `{dataset_cleaned}` that
    with '-' for '/'. A folder without either is the dataset's own, or the parent of several."""
    name = dataset.removeprefix("wds/")
    if "{dataset}" in pattern or "{dataset_cleaned}" in pattern:
        return pattern.replace("{dataset}", name).replace("{dataset_cleaned}", name.replace("/", "-"))
    return str(Path(pattern) / name) if several else pattern


def file_of(key: str, pattern: str, dataset: str, suffix: str, several: bool) -> str:
    """The file of a dataset: the pattern with `{dataset}`, or of several datasets a file DATASET + suffix in a folder.

    Raises:
        UserError: one file is named for several datasets.
    """
    name = slug(dataset)
    if "{dataset}" in pattern or not several:
        return pattern.replace("{dataset}", name)
    if Path(pattern).suffix and not Path(pattern).is_dir():
        raise UserError(key, f"{pattern}: one file for several datasets; write {{dataset}} into it, or give a folder")
    return str(Path(pattern) / f"{name}{suffix}")


def slug(*words: str) -> str:
    """A file's name of the words."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(words))


def parse_knn(description: str | None) -> KnnOptions:
    """The options. Mistakes exit with 2."""
    parser, values = _read(KnnOptions, description)
    for split in ("train", "val"):
        if values[f"{split}_root"] is None:
            if values["dataset_root"] is None:
                parser.error(f"the following arguments are required: --{split}_root (or --dataset_root)")
            values[f"{split}_root"] = str(Path(values["dataset_root"]) / split)
    return KnnOptions(**values)


def parse_efficiency(description: str | None) -> EfficiencyOptions:
    """The options. Mistakes exit with 2, or raise UserError where --json cannot be written."""
    _, values = _read(EfficiencyOptions, description)
    if values["json"]:
        check_writable("--json", values["json"])
    return EfficiencyOptions(**values)


def parse_speed(description: str | None) -> SpeedOptions:
    """The options. Mistakes exit with 2."""
    parser, values = _read(SpeedOptions, description)
    if "/" in values["dataset"]:
        parser.error(f"argument --dataset: {values['dataset']} is a stream; name one whose images lie in folders")
    return SpeedOptions(**values)
