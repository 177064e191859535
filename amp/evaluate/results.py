"""What the measuring scripts share: options of the model, the header of a result, and the result of an earlier run.

Light to import: `--help` and mistakes answer before torch is loaded.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp.errors import UserError, under
from amp.registry import FRAMES
from amp.run.console import say
from amp.run.files import file_sha256, prepare_output, read_json, write_json
from amp.run.identity import first_difference
from amp.settings.base import Precision

if TYPE_CHECKING:
    from amp.towers import Tower


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, --model_type, --pretrained and --img_size, as `amp.checkpoint.open_tower` takes them."""
    add = parser.add_argument
    add("--model", metavar="NAME|JSON|FOLDER", help="library's model name, an open_clip model JSON or a pruned/ folder")
    add("--model_type", choices=FRAMES.names, help="library of it (default: the folder's own, else open_clip)")
    add("--pretrained", metavar="CKPT", help="weights: a tag, a file or a pruned/ folder (default: random, seeded)")
    add("--img_size", type=int, metavar="PIXELS", help="side of a dense model's images (default: the model's own)")


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Exits with 2 when a number is below its least value, or when no model is named."""
    for key, minimum in least.items():
        if getattr(args, key) < minimum:
            parser.error(f"argument --{key}: {getattr(args, key)} is less than {minimum}")
    if args.img_size is not None and args.img_size < 1:
        parser.error(f"argument --img_size: {args.img_size} is less than 1")
    if not (args.model or args.pretrained):
        parser.error("the following arguments are required: --model (or a pruned/ folder as --pretrained)")


def open_model(args: argparse.Namespace, precision: Precision, device: str) -> "Tower":
    """The tower of `add_model_options`. Raises UserError."""
    from amp.models.open import open_tower

    text_pretrained = getattr(args, "text_pretrained", None)
    return open_tower(args.model, args.model_type, args.pretrained, precision, device, text_pretrained, args.img_size)


def digest_model(args: argparse.Namespace) -> dict[str, str | None]:
    """The model's files by digest: `{model_sha256, pretrained_sha256, text_sha256}`."""
    folder = next((path for path in (args.pretrained, args.model) if path and Path(path).is_dir()), None)
    weights = str(Path(folder) / "model.safetensors") if folder else args.pretrained
    digests = {"model_sha256": file_sha256(args.model), "pretrained_sha256": file_sha256(weights)}
    return {**digests, "text_sha256": file_sha256(getattr(args, "text_pretrained", None))}


def describe(
    args: argparse.Namespace, keys: Sequence[str], digests: Mapping[str, str | None], **more: Any
) -> dict[str, Any]:
    """What decides the numbers: the options `keys`, `more` settings, and the model's files of `digest_model`."""
    settings = {key: getattr(args, key) for key in keys} | {"model_sha256": digests["model_sha256"], **more}
    if args.img_size is not None:
        settings["img_size"] = args.img_size
    return {"settings": settings, "pretrained_sha256": digests["pretrained_sha256"]}


def check_writable(option: str, file: str) -> Path:
    """`file` as a path. Raises UserError when `option` names a file that could not be written."""
    path = Path(file)
    if path.is_dir():
        raise UserError(option, f"{file}: is a folder; give the name of a file")
    with under(option, instead_of="output.dir"):
        prepare_output(str(path.parent))
    return path


def root_of(pattern: str, dataset: str, several: bool) -> str:
    """The folder of a dataset, as in clip_benchmark: `{dataset}` is its name without 'wds/', `{dataset_cleaned}` that
    with '-' for '/'. A folder without either is the dataset's own, or the parent of several."""
    name = dataset.removeprefix("wds/")
    if "{dataset}" in pattern or "{dataset_cleaned}" in pattern:
        return pattern.replace("{dataset}", name).replace("{dataset_cleaned}", name.replace("/", "-"))
    return str(Path(pattern) / name) if several else pattern


def file_of(option: str, pattern: str, dataset: str, suffix: str, several: bool) -> str:
    """The file of a dataset: the pattern with `{dataset}`, or of several datasets a file DATASET + suffix in a folder.

    Raises:
        UserError: one file is named for several datasets.
    """
    name = slug(dataset)
    if "{dataset}" in pattern or not several:
        return pattern.replace("{dataset}", name)
    if Path(pattern).suffix and not Path(pattern).is_dir():
        raise UserError(
            option, f"{pattern}: one file for several datasets; write {{dataset}} into it, or give a folder"
        )
    return str(Path(pattern) / f"{name}{suffix}")


def slug(*words: str) -> str:
    """A file's name of the words."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(words))


def short_digest(value: Any) -> str:
    """Eight hex digits that tell one JSON value from another, for a file's name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def find_result(
    args: argparse.Namespace, words: Sequence[str], header: dict[str, Any]
) -> tuple[Path, dict[str, Any] | None]:
    """Where the result goes, and the result if it is there.

    Args:
        args: `--output` is the file; without it, out/eval/WORDS_MODEL_DIGEST.json.
        words: what is measured, for the file's name.
        header: of `describe`.
    Raises:
        UserError: the file holds another measurement, or cannot be written.
    """
    name = slug(*words, Path(args.model or args.pretrained).stem, short_digest(header))
    path = check_writable("--output", args.output or f"out/eval/{name}.json")
    record = read_json(path) if path.exists() else None
    if record and (difference := first_difference(record, header)):
        key, old, new = difference
        raise UserError(
            "--output", f"{path}: another measurement: {key} was {old!r}, now {new!r}; name another file or delete it"
        )
    return path, record


def write_result(path: Path, header: Mapping[str, Any], packages: Sequence[str], **measured: Any) -> dict[str, Any]:
    """The record of a measurement, written by the main process: what was measured, the header, and versions."""
    from amp.run.world import world

    record = {**measured, **header, "versions": {package: version(package) for package in packages}}
    if world().is_main:
        write_json(path, record)
    world().barrier()
    return record


def show(title: str, heading: str, record: Mapping[str, Any], path: Path) -> None:
    """The metrics on the console, in percent, and where they are written."""
    from amp.run.tables import percent, table

    rows = [[name, percent(value)] for name, value in record["metrics"].items()]
    say(f"{title}\n{table([heading, '%'], rows)}\n{path}")
