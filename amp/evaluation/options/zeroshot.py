"""The options of eval_zsc.py: zero-shot classification and retrieval, of one data set or of several."""

from argparse import ArgumentTypeError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from amp.errors import UserError
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.dataset_files import NEEDS, OWN, Task
from amp.evaluation.options.model import ModelOptions, batches_of, read_model_options, slug, workers
from amp.evaluation.paper import DATASETS
from amp.run.options import check_place, count, option
from amp.settings.base import Precision


def _table_file(text: str) -> str:
    if Path(text).suffix not in (".md", ".csv"):
        raise ArgumentTypeError(f"{text}: expected a file that ends in .md or .csv")
    return text


@dataclass(frozen=True, kw_only=True)
class ZeroshotOptions(ModelOptions):
    """Of eval_zsc.py, for one data set."""

    text_pretrained: str | None = option(
        "dense weights, whose text tower completes a published vision checkpoint (default: none)", None, metavar="CKPT"
    )
    batch_size: int = batches_of(256)
    text_batch_size: int = count("prompts per batch on each process", 80, least=1)
    task: Task = option("the task to evaluate", "zeroshot_classification", choices=[*NEEDS])
    dataset: str = option(
        "datasets of clip_benchmark, digit_scenes, or your own images: imagefolder (class folders) or captions (with "
        "--captions); 'paper' stands for the six classification datasets of the paper",
        nargs="+",
        metavar="NAME",
    )
    dataset_root: str = option(
        "folder of the dataset; for several datasets, the folder above them, or a pattern with {dataset} or "
        "{dataset_cleaned}",
        metavar="DIR",
    )
    classnames: str | None = option(
        "for imagefolder: a name for each class folder, one per line in their sorted order, or FOLDER<TAB>NAME "
        "(default: the names of the folders, with _ as a space)",
        None,
        aside=True,
        metavar="FILE",
    )
    templates: str | None = option(
        "for imagefolder: prompts, one per line, with {c} for the class name (default: 'a photo of a {c}.')",
        None,
        aside=True,
        metavar="FILE",
    )
    captions: str | None = option(
        "for captions: a .csv, .tsv or .jsonl file with the columns file and caption; the files are relative to "
        "--dataset_root (default: none)",
        None,
        aside=True,
        metavar="FILE",
    )
    download: bool = option(
        "let clip_benchmark download what is missing (default: no downloads)", False, aside=True, action="store_true"
    )
    language: str = option("language of the class names or the captions", "en")
    save_clf: str | None = option(
        "file to write the text classifier to; for several datasets, a folder or a pattern with {dataset} "
        "(default: none)",
        None,
        aside=True,
        metavar="FILE",
    )
    load_clfs: tuple[str, ...] = option(
        "use the mean of these text classifiers; for several datasets, a folder or a pattern with {dataset} "
        "(default: none)",
        (),
        aside=True,
        nargs="+",
        metavar="FILE",
    )
    precision: Precision | None = option(
        "precision of the encoders (default: bf16 on CUDA, fp32 on CPU)", None, choices=get_args(Precision)
    )
    num_workers: int = workers()
    output: str | None = option(
        "file to write the metrics to; for several datasets, a folder or a pattern with {dataset} "
        "(default: out/eval/DATASET_TASK_MODEL_DIGEST.json)",
        None,
        aside=True,
        metavar="JSON",
    )
    table: tuple[str, ...] = option(
        "files to write the table to, .md or .csv (default for several datasets: TASK_MODEL_DIGEST.md and .csv beside "
        "the metrics)",
        (),
        aside=True,
        nargs="+",
        type=_table_file,
        metavar="FILE",
    )

    @property
    def benchmark(self) -> Benchmark:
        """The data set."""
        return Benchmark(
            self.task,
            self.dataset,
            self.dataset_root,
            self.language,
            self.download,
            self.classnames,
            self.templates,
            self.captions,
        )

    @property
    def builds_classifier(self) -> bool:
        """Whether the class names become the text classifier."""
        return self.task == "zeroshot_classification" and not self.load_clfs

    def decisive(self) -> dict[str, Any]:
        """The options that decide the numbers; the prompts' batch size where there are prompts."""
        return {k: v for k, v in super().decisive().items() if k != "text_batch_size" or self.builds_classifier}


def parse_zeroshot(description: str | None) -> list[ZeroshotOptions]:
    """The options of each data set, as if it were the only one. Mistakes exit with 2, or raise UserError."""
    parser, values = read_model_options(ZeroshotOptions, description)
    if values["task"] != "zeroshot_classification" and (values["save_clf"] or values["load_clfs"]):
        parser.error("argument --save_clf, --load_clfs: zeroshot_retrieval has no text classifier")
    for file in values["table"]:
        check_place("--table", file)
    names = [name for given in values["dataset"] for name in (DATASETS if given == "paper" else [given])]
    names = list(dict.fromkeys(names))
    for key, of_dataset in OWN.items():
        if values[key] and of_dataset not in names:
            parser.error(f"argument --{key}: only for --dataset {of_dataset}")
    return [_of_dataset(ZeroshotOptions(**{**values, "dataset": name}), len(names) > 1) for name in names]


def _of_dataset(options: ZeroshotOptions, several: bool) -> ZeroshotOptions:
    """The options with the folders and files of their own data set."""

    def own(key: str, pattern: str | None, suffix: str) -> str | None:
        return file_of(key, pattern, options.dataset, suffix, several) if pattern else None

    clfs = [file_of("--load_clfs", file, options.dataset, ".safetensors", several) for file in options.load_clfs]
    for file in clfs:
        if not Path(file).is_file():
            raise UserError("--load_clfs", f"{file}: no such file")
    others: dict[str, Any] = {key: None for key, of_dataset in OWN.items() if options.dataset != of_dataset}
    written: dict[str, Any] = {
        "save_clf": own("--save_clf", options.save_clf, ".safetensors"),
        "output": own("--output", options.output, f"_{options.task}.json"),
    }
    for key, file in written.items():
        check_place(f"--{key}", file)
    return replace(
        options,
        dataset_root=root_of(options.dataset_root, options.dataset, several),
        load_clfs=tuple(clfs),
        **written,
        **others,
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
        raise UserError(
            key, f"{pattern}: one file for several datasets; put {{dataset}} into its name, or give a folder"
        )
    return str(Path(pattern) / f"{name}{suffix}")
