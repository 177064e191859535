"""The options of eval_models.py: a pruned model beside its dense one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amp.evaluation.dataset_files import check_class_folders
from amp.evaluation.options.images import one_in, split_roots
from amp.evaluation.options.model import batches_of, check_dense, result_file, workers
from amp.evaluation.readers.class_folders import check_holds_image, class_names
from amp.evaluation.readers.texts import name_classes, read_lines, read_pairs, read_templates
from amp.registry import FRAMES
from amp.run.options import argument, check_model_folder, check_place, count, decisive, option, read_options
from amp.settings.model import Frame

Measured = Literal["zeroshot", "retrieval", "knn", "probe", "top1"]
TASKS: tuple[Measured, ...] = ("zeroshot", "retrieval", "knn", "probe", "top1")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Of eval_models.py."""

    folder: str = argument("the pruned model: a pruned/ or distilled/ folder", metavar="FOLDER")
    dense: str | None = option(
        "the dense model (default: the one that FOLDER was pruned from)",
        None,
        where_set=True,
        metavar="NAME|JSON|FOLDER",
    )
    model_type: Frame | None = option(
        "library of --dense (default: found by its name)",
        None,
        also="--frame",
        where_set=True,
        choices=FRAMES.names,
    )
    pretrained: str | None = option(
        "weights of the dense model, or random (default: those recorded in FOLDER)",
        None,
        also="--weights",
        where_set=True,
        metavar="CKPT",
    )
    images: str | None = option(
        "any folder of images, to compare features (default: the images of the evaluation)",
        None,
        needed=True,
        where_set=True,
        metavar="DIR",
    )
    num_images: int = count("most images of --images to use, spread evenly over them", 10_000, least=2)
    dataset_root: str | None = option(
        "class folders, or a folder that holds them in train/ and val/ (or test/), for zero-shot, k-NN, linear probe, "
        "and the top-1 of a classifier (default: none)",
        None,
        aside=True,
        needed=True,
        metavar="DIR",
    )
    captions: str | None = option(
        "a .csv, .tsv or .jsonl file with the columns file and caption, for retrieval; the files are relative to "
        "--images (default: none)",
        None,
        aside=True,
        metavar="FILE",
    )
    tasks: tuple[Measured, ...] = option(
        "what to evaluate besides agreement (default: every task that the data and the model allow)",
        (),
        nargs="+",
        choices=TASKS,
    )
    classnames: str | None = option(
        "as for `amp eval zsc`; without --dataset_root, the class names that both models choose from, one per line "
        "(default: the names of the folders)",
        None,
        aside=True,
        metavar="FILE",
    )
    templates: str | None = option(
        "as for `amp eval zsc` (default: one plain prompt)", None, aside=True, metavar="FILE"
    )
    labels: str | None = option("as for `amp eval top1` (default: found by name)", None, aside=True, metavar="FILE")
    held_out: int | None = one_in()
    batch_size: int = batches_of(256)
    num_workers: int = workers()
    output: str | None = result_file("compare_MODEL")

    @property
    def roots(self) -> dict[str, Any]:
        """`{train_root, val_root, held_out}`, as of `split_roots`; None each without --dataset_root.

        Where no task learns from images, none are kept from the test.
        """
        if not self.dataset_root:
            return {"train_root": None, "val_root": None, "held_out": None}
        roots = split_roots(self.dataset_root, self.held_out)
        return roots if self.asks_for("knn") or self.asks_for("probe") else {**roots, "held_out": self.held_out}

    @property
    def model_stem(self) -> str:
        """A short name of the model, for a file's name."""
        folder = Path(self.folder).absolute()
        return f"{folder.parent.name}_{folder.name}"

    def decisive(self) -> dict[str, Any]:
        """The options that decide the numbers."""
        return {**decisive(self), **{key: root for key, root in self.roots.items() if root is not None}}

    def asks_for(self, task: Measured) -> bool:
        """Whether the options leave room for a task: it is not left out, and they name its data."""
        data = self.captions if task == "retrieval" else self.dataset_root
        return data is not None and task in (self.tasks or TASKS)


def parse_compare(description: str | None) -> CompareOptions:
    """The options. Mistakes exit with 2, or raise UserError."""
    parser, values = read_options(CompareOptions, description)
    check_dense("dense", values)
    options = CompareOptions(**values)
    if not (options.images or options.dataset_root):
        parser.error("give --images DIR (any folder of images) or --dataset_root DIR (class folders)")
    for task in options.tasks:
        if not options.asks_for(task):
            needed = "--captions (and --images)" if task == "retrieval" else "--dataset_root"
            parser.error(f"argument --tasks: {task} needs {needed}")
    if options.captions and not options.images:
        parser.error("argument --captions: needs --images, the folder of its files")
    for key in ("labels", "held_out"):
        if getattr(options, key) and not options.dataset_root:
            parser.error(f"argument --{key}: needs --dataset_root, the class folders")
    _check_files(options)
    return options


def _check_files(options: CompareOptions) -> None:
    """Raises UserError for folders and files that are not what they should be."""
    check_model_folder(options.folder)
    check_place("--output", options.output)
    if options.images:
        check_holds_image("--images", options.images)
    if options.captions:
        read_pairs("--captions", options.captions)
    if options.templates:
        read_templates("--templates", options.templates)
    if options.labels:
        read_lines("--labels", options.labels)
    train_root, val_root, _ = options.roots.values()
    if val_root:
        name_classes(class_names("--dataset_root", val_root), "--classnames", options.classnames)
        if options.asks_for("knn") or options.asks_for("probe"):
            check_class_folders(("--dataset_root", train_root), ("--dataset_root", val_root))
    elif options.classnames:
        read_lines("--classnames", options.classnames)
