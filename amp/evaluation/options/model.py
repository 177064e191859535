"""What all of the options have in common: the model, its batches, and names of files."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amp.registry import FRAMES
from amp.run.options import check_model, check_weights, count, decisive, option, read_options
from amp.settings.base import MOST_SIDE, MOST_WORKERS
from amp.settings.model import Frame, library_before


def batches_of(default: int) -> Any:
    """The option --batch_size."""
    return count("images per batch on each process", default, least=1)


def workers() -> Any:
    """The option --num_workers."""
    return count("processes that read images, per process of the run", 4, least=0, aside=True, most=MOST_WORKERS)


def result_file(words: str) -> Any:
    """The option --output, of a file that is named by `words` where it is not given."""
    return option(
        f"file to write the metrics to (default: out/eval/{words}_DIGEST.json)", None, aside=True, metavar="JSON"
    )


def slug(*words: str) -> str:
    """A file's name of the words."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(words))


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model is measured, as `amp.models.open.open_tower` takes it."""

    model: str | None = option(
        "model name (timm/NAME for a model of timm), an open_clip model JSON, or a pruned/ folder",
        None,
        needed=True,
        metavar="NAME|JSON|FOLDER",
    )
    model_type: Frame | None = option(
        "library of the model (default: that of the folder, else open_clip)", None, also="--frame", choices=FRAMES.names
    )
    pretrained: str | None = option(
        "weights: a tag, a file or a pruned/ folder (default: random weights, fixed seed)",
        None,
        also="--weights",
        metavar="CKPT",
    )
    img_size: int | None = count(
        "image size of a dense model (default: the model's own)",
        None,
        least=1,
        metavar="PIXELS",
        most=MOST_SIDE,
        where_set=True,
    )

    @property
    def model_stem(self) -> str:
        """A short name of the model, for a file's name."""
        return Path(str(self.model or self.pretrained)).stem

    def decisive(self) -> dict[str, Any]:
        """The options that decide the numbers, as a result records them."""
        return decisive(self)


def read_model_options(declared: type[ModelOptions], description: str | None) -> Any:
    """The parser and the values of `read_options`; exits with 2 where no model is named."""
    parser, values = read_options(declared, description)
    if not (values["model"] or values["pretrained"]):
        parser.error("the following arguments are required: --model (or a pruned/ folder as --pretrained)")
    check_dense("model", values)
    return parser, values


def check_dense(key: str, values: dict[str, Any]) -> None:
    """Takes the library before a name for --model_type: `timm/NAME`. Raises UserError for files that are not there.

    Args:
        key: the option that holds the name.
    """
    name = values[key]
    frame, rest = library_before(name) if name else (None, name)
    if frame and values["model_type"] in (None, frame):
        values |= {key: rest, "model_type": frame}
    check_model(f"--{key}", values[key])
    check_weights("--pretrained", values["pretrained"])
