"""The result of an evaluation: one JSON file, which the next call with the same options and model finds again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from amp.data.identity import folder_digest
from amp.errors import under
from amp.evaluation.options import ModelOptions, ZeroshotOptions, slug
from amp.evaluation.options.images import DividedOptions
from amp.evaluation.paper import summarise
from amp.models.open import open_tower
from amp.run.console import say
from amp.run.files import file_sha256, json_sha256, texts_sha256
from amp.run.identity import PACKAGES
from amp.run.options import check_writable
from amp.run.run import Run
from amp.run.tables import percent, table, write_table
from amp.run.world import world
from amp.settings.base import Precision
from amp.towers import Tower, tell_preprocess


class Recorded(Protocol):
    """Options whose result is a file."""

    @property
    def output(self) -> str | None:
        """The file that was asked for."""

    @property
    def model_stem(self) -> str:
        """A short name of the model, for a file's name."""

    def decisive(self) -> dict[str, Any]:
        """The options that decide the numbers."""


# Is shown the model and the data sets that will pass it, once both are open and before anything is measured.
Look = Callable[[Tower, Sequence[Any]], None]
Options = TypeVar("Options", bound=Recorded)
Divided = TypeVar("Divided", bound=DividedOptions)


@dataclass(frozen=True)
class Evaluation(Run[Options], Generic[Options]):
    """A run whose result is one JSON file.

    Attributes:
        name: of the file.
    """

    name: str = ""

    def show(self, title: str, heading: str, record: Mapping[str, Any]) -> None:
        """The metrics on the console, in percent, and where they are written."""
        rows = [[name, percent(value)] for name, value in record["metrics"].items()]
        say(f"{title}\n{table([heading, '%'], rows)}\nnumbers: {self.path(self.name)}")


def open_evaluation(
    options: Options,
    words: Sequence[str],
    digests: Mapping[str, str | None],
    packages: tuple[str, ...] = PACKAGES,
    **settings: object,
) -> Evaluation[Options]:
    """The run of an evaluation; its file is that of --output, or out/eval/WORDS_MODEL_DIGEST.json.

    Args:
        words: what is measured, for the file's name.
        digests: of `digest_model`.
        packages: whose versions are recorded.
        settings: what decides the numbers besides the options.
    Raises:
        UserError: the file cannot be written.
    """
    decisive = {**options.decisive(), "model_sha256": digests["model_sha256"], **settings}
    identity = {"settings": decisive, "pretrained_sha256": digests["pretrained_sha256"]}
    name = slug(*words, options.model_stem, json_sha256(identity)[:8])
    path = check_writable("--output", options.output or f"out/eval/{name}.json")
    return Evaluation(options, path.parent, identity, "--output", packages, name=path.name)


def with_images(run: Evaluation[Options], *roots: tuple[str, str]) -> Evaluation[Options]:
    """The evaluation of the images that are there now: other names, sizes or times of files are another evaluation.

    Args:
        roots: (option, folder) of each; what is no folder, as a stream's address, does not count.
    Raises:
        UserError: a folder cannot be read.
    """
    digests = [folder_digest(root, option) for option, root in roots if Path(root).is_dir()]
    return replace(run, identity={**run.identity, "images_sha256": "+".join(digests)}) if digests else run


def open_divided_evaluation(
    options: Divided, word: str, packages: tuple[str, ...] = (), **settings: object
) -> Evaluation[Divided]:
    """The evaluation of what learns from some images and is tested on others; nothing is measured.

    Args:
        word: what is measured, for the file's name.
        packages: whose versions are recorded besides.
        settings: as of `open_evaluation`.
    Raises:
        UserError: its file cannot be written, or a folder cannot be read.
    """
    folder = Path(options.val_root).absolute()
    words = ((folder.parent if options.held_out is None else folder).name, word)
    roots = dict.fromkeys((options.train_root, options.val_root))
    named = [("--train_root" if root == options.train_root else "--val_root", root) for root in roots]

    def opened() -> Evaluation[Divided]:
        run = open_evaluation(options, words, digest_model(options), (*PACKAGES, *packages), **settings)
        return with_images(run, *named)

    return world().from_main(opened)


def digest_model(options: ModelOptions) -> dict[str, str | None]:
    """The model's files by digest: `{model_sha256, pretrained_sha256}`; None where a library or nothing is named."""
    folder = next((path for path in (options.pretrained, options.model) if path and Path(path).is_dir()), None)
    described = texts_sha256(options.model) if options.model else None
    return {"model_sha256": described, "pretrained_sha256": file_sha256(folder or options.pretrained)}


def digest_texts(options: object, *keys: str) -> dict[str, str | None]:
    """`{KEY_sha256}` of the files that these options name, without those that name none."""
    files = {key: getattr(options, key) for key in keys}
    return {f"{key}_sha256": file_sha256(file) for key, file in files.items() if file}


def open_model(options: ModelOptions, precision: Precision, device: str, text_pretrained: str | None = None) -> Tower:
    """The tower that the options name.

    Args:
        precision: of the weights.
        text_pretrained: dense weights that the text tower of a published vision checkpoint takes.
    Raises:
        UserError: under the option that holds the mistake.
    """
    with (
        under("--model", instead_of="model.name"),
        under("--pretrained", instead_of="model.pretrained"),
        under("--img_size", instead_of="model.kwargs"),
    ):
        tower = open_tower(
            options.model,
            options.model_type,
            options.pretrained,
            precision,
            device,
            text_pretrained,
            options.img_size,
        )
    tell_preprocess(tower)
    return tower


def write_summary(options: ZeroshotOptions, records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """The table of all data sets, on the console and in its files; without --table only of several.

    Args:
        folder: of the files where --table names none.
    """
    if len(records) == 1 and not options.table:
        return
    headers, rows = summarise(records)
    identity = [{key: record[key] for key in ("settings", "pretrained_sha256")} for record in records]
    stem = slug(options.task, options.model_stem, json_sha256(identity)[:8])
    files = [Path(file) for file in options.table or (folder / f"{stem}.md", folder / f"{stem}.csv")]
    for file in files:
        write_table(file, headers, rows)
    say("\n".join(["", table(headers, rows), *map(str, files)]))
