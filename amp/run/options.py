"""Options of a script that has no settings file: fields of a frozen dataclass, each declared once with its help.

@dataclass(frozen=True, kw_only=True)
class Options:
    batch_size: int = count("images in one batch", 256, least=1)

options = Options(**read_options(Options, __doc__)[1])
"""

import argparse
import os
import tempfile
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any

from amp.errors import UserError, under
from amp.run.console import called
from amp.run.files import is_described, made
from amp.settings.base import MOST, Parser, at_least
from amp.settings.run import RunConfig

_OF_A_MODEL = ("*model*.safetensors", "*model*.bin")
OF_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")


def option(
    text: str,
    default: object = MISSING,
    aside: bool = False,
    also: str | None = None,
    needed: bool = False,
    where_set: bool = False,
    **how: object,
) -> Any:
    """A field of a class of options.

    Args:
        text: for `--help`; the default is put after it where it is a word or a number.
        default: without one the option is required.
        aside: whether it leaves the result as it is.
        also: another name of it, as other commands call it.
        needed: whether `--help` shows it before the others, as it shows what is required.
        where_set: whether it is recorded only where it is given, so that results of earlier versions, which do not know
            it, are found again.
        how: it is read, as for `argparse.ArgumentParser.add_argument`.
    """
    own = {"aside": aside, "also": also, "where_set": where_set}
    if default is MISSING:
        how |= {"required": True, "help": f"{text} (required)"}
        return field(metadata=own | {"needed": True, "how": how})
    shown = default is not None and not isinstance(default, (bool, tuple))
    how |= {"default": default, "help": f"{text} (default: %(default)s)" if shown else text}
    return field(default=default, metadata=own | {"needed": needed, "how": how})


def argument(text: str, **how: object) -> Any:
    """A field that is typed without its name, and is required."""
    return field(metadata={"aside": False, "positional": True, "how": how | {"help": text}})


def count(
    text: str,
    default: int | None,
    least: int,
    aside: bool = False,
    metavar: str = "N",
    most: int = MOST,
    where_set: bool = False,
) -> Any:
    """An option that is a whole number from `least` to `most`."""
    return option(text, default, aside, where_set=where_set, type=at_least(least, most), metavar=metavar)


def read_options(declared: type, description: str | None) -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """The command line's values by the fields of `declared`, lists as tuples; and the parser, for further mistakes.

    What argparse refuses exits with 2.
    """
    parser = Parser(description=description)
    needed = parser.add_argument_group("what to measure")
    for own in fields(declared):
        names = [own.name if own.metadata.get("positional") else f"--{own.name}", own.metadata.get("also")]
        (needed if own.metadata.get("needed") else parser).add_argument(*filter(None, names), **own.metadata["how"])
    values = vars(parser.parse_args())
    return parser, {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def decisive(options: Any) -> dict[str, Any]:
    """The options that decide a result: all but those declared aside, or `where_set` and not given."""
    values = {own.name: getattr(options, own.name) for own in fields(options) if not own.metadata["aside"]}
    optional = {own.name for own in fields(options) if own.metadata.get("where_set")}
    return {key: value for key, value in values.items() if key not in optional or value is not None}


def check_place(option: str, file: str | None) -> None:
    """Raises UserError where `option` names what can be no new file: a folder, or below a file. Writes nothing."""
    if file is None:
        return
    if Path(file).is_dir():
        raise UserError(option, f"{file}: is a folder; give a file name")
    check_output(str(Path(file).parent), option)


def check_output(folder: str, option: str = "output.dir") -> None:
    """Raises UserError where `option` names what can be no folder to write. Writes nothing."""
    path = Path(folder).absolute()
    above = next(place for place in (path, *path.parents) if place.exists())
    if not above.is_dir():
        raise UserError(option, f"{folder}: {above} is a file; choose a folder")
    if not os.access(above, os.W_OK):
        raise UserError(option, f"{folder}: {above} cannot be written to; choose another folder")


def check_outside_models(folder: str | Path) -> None:
    """Raises UserError where a run's folder is a model's own, or lies in one: its files would count as the model's,
    and go when the model is written anew."""
    own = Path(folder).resolve()
    for place in (own, *own.parents):
        if is_described(place) and any(file for pattern in _OF_A_MODEL for file in place.glob(pattern)):
            is_it = "is" if place == own else "is inside"
            other = place.parent / f"{place.name}-run"
            raise UserError(
                "output.dir", f"{folder} {is_it} the folder of a model, {place}; choose one outside it, such as {other}"
            )


def check_outside_images(folder: str | Path, root: str | Path, key: str = "output.dir") -> None:
    """Raises UserError where a run would write among the images that it reads, and find other ones the next time.

    Args:
        root: of the images; what is no folder, as a pattern of shards, does not count.
        key: the setting or option that chose the folder.
    """
    if not Path(root).is_dir():
        return
    own, images = Path(folder).resolve(), Path(root).resolve()
    if images in (own, *own.parents):
        raise UserError(key, f"{folder} is inside {root}, which holds the input images; choose a folder outside it")


def check_run_folder(config: RunConfig) -> None:
    """Raises UserError where no run may write: as of `check_output`, in a model's folder, or among the images that the
    run reads. Writes nothing."""
    check_output(config.output.dir)
    check_outside_models(config.output.dir)
    check_outside_images(config.output.dir, config.data.root)


def prepare_output(folder: str) -> Path:
    """The run's folder, not left behind where it is new. Raises UserError when it cannot be written to."""
    check_output(folder)
    path = Path(folder)
    try:
        with made(path), tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        text = f"{folder}: cannot be written to ({error.strerror}); choose another folder"
        raise UserError("output.dir", text) from None
    return path


def check_writable(key: str, file: str) -> Path:
    """`file` as a path. Raises UserError when `key` names a file that could not be written."""
    check_place(key, file)
    with under(key, instead_of="output.dir"):
        prepare_output(str(Path(file).parent))
    return Path(file)


def check_scored(path: Path) -> None:
    """Raises UserError unless the file of a scoring, which a pruning reads, is there."""
    if not path.exists():
        score = called("score")
        raise UserError(path, f"no such file; run {score} with the same --config_file first")


def check_model_folder(folder: str | Path) -> None:
    """Raises UserError unless `folder` holds a description of a model; names those in it that do."""
    path, expected = Path(folder), "expected a pruned/ or distilled/ folder"
    if is_described(path):
        return
    if not path.is_dir():
        where = "is a file" if path.exists() else "no such folder"
        raise UserError(folder, f"{where}; {expected}")
    below = [str(own) for own in sorted(path.iterdir()) if is_described(own)]
    meant = f"; did you mean {' or '.join(below[:3])}?" if below else ""
    raise UserError(folder, f"holds no config.json; {expected}{meant}")


def check_model(option: str, name: str | None) -> None:
    """Raises UserError for a path that is no model, where no library's name looks like it: before one is loaded."""
    path = Path(name or "")
    if name is None or is_described(path):
        return
    if path.is_dir() and "/" in name:
        check_model_folder(name)
    if path.is_file() and path.suffix != ".json":
        if is_described(path.parent):
            raise UserError(option, f"{name}: is one file of a model folder; give the folder, {path.parent}")
        told = "is a file; give a model name, a model's .json or a folder; give weights with --pretrained"
        raise UserError(option, f"{name}: {told}")
    if not path.exists() and (name.count("/") > 1 or name.startswith(("/", "."))):
        raise UserError(option, f"{name}: no such file or folder; give a model name, a model's .json or a folder")


def check_weights(option: str, weights: str | None) -> None:
    """Raises UserError for a file of weights that is not there."""
    if weights and Path(weights).suffix in OF_WEIGHTS and not Path(weights).exists():
        raise UserError(option, f"{weights}: no such file; give a file, a tag of the library or a pruned/ folder")
