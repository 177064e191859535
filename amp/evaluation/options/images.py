"""The options of what is measured on folders of classes: eval_knn.py, eval_probe.py and eval_top1.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from amp.errors import UserError
from amp.evaluation.options.model import (
    ModelOptions,
    batches_of,
    read_model_options,
    result_file,
    workers,
)
from amp.evaluation.readers.class_folders import HELD_OUT_EVERY, folder_to_test, is_divided
from amp.evaluation.readers.texts import read_lines
from amp.run.options import check_place, count, option


def one_in() -> Any:
    """The option --held_out."""
    return count(
        f"if there are class folders without train/: hold out one image in N of each class for testing (default: "
        f"{HELD_OUT_EVERY})",
        None,
        least=2,
        where_set=True,
    )


@dataclass(frozen=True, kw_only=True)
class DividedOptions(ModelOptions):
    """Of what learns from some labelled images, and is tested on others."""

    dataset_root: str | None = option(
        "folder with train/ and val/ (or test/), or the class folders themselves",
        None,
        aside=True,
        needed=True,
        metavar="DIR",
    )
    train_root: str = option(
        "training images in class folders (default: train/ of --dataset_root)", None, metavar="DIR"
    )
    val_root: str = option(
        "validation images in the same classes (default: val/, else test/, of --dataset_root)", None, metavar="DIR"
    )
    held_out: int | None = one_in()
    batch_size: int = batches_of(256)
    num_workers: int = workers()
    output: str | None = result_file("DATASET_TASK_MODEL")


@dataclass(frozen=True, kw_only=True)
class KnnOptions(DividedOptions):
    """Of eval_knn.py."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(DividedOptions):
    """Of eval_probe.py."""


@dataclass(frozen=True, kw_only=True)
class Top1Options(ModelOptions):
    """Of eval_top1.py."""

    dataset_root: str = option("class folders, or a folder that holds them in val/ or test/", metavar="DIR")
    labels: str | None = option(
        "file with the class folder of each output of the model, one per line (default: matched by the model's own "
        "labels or the ids of ImageNet, else the folders in sorted order)",
        None,
        aside=True,
        metavar="FILE",
    )
    batch_size: int = batches_of(256)
    num_workers: int = workers()
    output: str | None = result_file("DATASET_top1_MODEL")


Divided = TypeVar("Divided", bound=DividedOptions)


def _parse_divided(declared: type[Divided], description: str | None) -> Divided:
    parser, values = read_model_options(declared, description)
    check_place("--output", values["output"])
    for split in ("train", "val"):
        if values[f"{split}_root"] is None and values["dataset_root"] is None:
            parser.error(f"the following arguments are required: --{split}_root (or --dataset_root)")
    given_roots = values["train_root"] or values["val_root"]
    values |= split_roots(values["dataset_root"], values["held_out"], values["train_root"], values["val_root"])
    if values["held_out"] and given_roots:
        parser.error("argument --held_out: not allowed with --train_root or --val_root, which already split the images")
    return declared(**values)


def split_roots(
    root: str | None, every: int | None, train_root: str | None = None, val_root: str | None = None
) -> dict[str, Any]:
    """`{train_root, val_root, held_out}`: the folders to learn from and to test on, both of them `root` where it holds
    the class folders themselves, of which one image in `held_out` is then tested on.

    Raises:
        UserError: `every` is given for a folder that is divided already.
    """
    if root and not (train_root or val_root) and Path(root).is_dir() and not is_divided(root):
        return {"train_root": root, "val_root": root, "held_out": every or HELD_OUT_EVERY}
    if root and every and is_divided(root):
        raise UserError("--held_out", f"{every}: {root} is already split into train/ and val/ or test/")
    train, val = train_root or str(Path(str(root)) / "train"), val_root or _val(str(root))
    return {"train_root": train, "val_root": val, "held_out": every}


def _val(root: str) -> str:
    found = Path(folder_to_test(root))
    return str(found if found.name in ("val", "test") else Path(root) / "val")


def parse_knn(description: str | None) -> KnnOptions:
    """The options. Mistakes exit with 2, or raise UserError."""
    return _parse_divided(KnnOptions, description)


def parse_probe(description: str | None) -> ProbeOptions:
    """The options. Mistakes exit with 2, or raise UserError."""
    return _parse_divided(ProbeOptions, description)


def parse_top1(description: str | None) -> Top1Options:
    """The options. Mistakes exit with 2, or raise UserError where --labels cannot be read."""
    _, values = read_model_options(Top1Options, description)
    check_place("--output", values["output"])
    if values["labels"]:
        read_lines("--labels", values["labels"])
    return Top1Options(**values)
