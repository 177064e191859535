"""What decides a run's result, where artifacts record it, and in what two runs differ.

An identity is `{settings, model_sha256, pretrained_sha256, ...}`: the settings that decide the result, and digests of
the files that they name. A header is an identity with the versions of the software, as artifacts hold it.
"""

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from amp.errors import UserError
from amp.run.files import CONFIG, file_sha256, texts_sha256
from amp.run.sealed import description_of, read_json, read_tensor_header
from amp.settings.run import RunConfig
from amp.version import __version__

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers")
DIGEST = "_sha256"
# What a setting names, by content; how its path is spelled then says nothing.
DIGEST_OF = {
    "data.root": "train_names_sha256",
    "model.name": "model_sha256",
    "teacher.name": "model_sha256",
    "model.pretrained": "pretrained_sha256",
    "teacher.pretrained": "pretrained_sha256",
    "student.pretrained": "student_sha256",
}
# What a digest is of, for people.
CONTENTS = {
    "model_sha256": "the files that describe the model",
    "pretrained_sha256": "the weights",
    "student_sha256": "the student",
    "train_sha256": "the training images (names, sizes or times of the files)",
    "train_names_sha256": "the training images (names or sizes of the files)",
    "val_sha256": "the held-out images (names, sizes or times of the files)",
    "val_names_sha256": "the held-out images (names or sizes of the files)",
    "images_sha256": "the images (names, sizes or times of the files)",
    "scores_sha256": "the scores",
}


def identity(config: RunConfig, leave_out: tuple[str, ...] = (), **digests: str | None) -> dict[str, Any]:
    """What decides the result of a run with these settings.

    Args:
        leave_out: groups of settings that have no say in it.
        digests: of files besides the dense model's, their names ending in `_sha256`.
    """
    own = {"model_sha256": texts_sha256(config.dense.name), "pretrained_sha256": file_sha256(config.dense.weights)}
    return {"settings": config.decisive(leave_out), **own, **digests}


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Of this software and of what its numbers depend on, where that is installed."""
    found = {"amp": __version__}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_header(path: Path, advice: str = "") -> dict[str, Any]:
    """The header that an artifact holds: a JSON record, a model folder (by its config.json), or a file of tensors.

    Args:
        advice: ends the message where it cannot be read.
    Raises:
        UserError: it cannot be read, or holds none.
    """
    if path.suffix == ".safetensors":
        return read_tensor_header(path, advice)
    if path.name == CONFIG:
        return dict(read_json(description_of(path.parent), advice).get("provenance", {}))
    return read_json(path, advice)


def recorded_frame(header: Mapping[str, Any]) -> Any:
    """The frame that a header names; None where it names none."""
    try:
        return header["settings"]["model"]["frame"]
    except (KeyError, TypeError):
        return None


def first_difference(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(key, recorded value, wanted value) of the first setting or file in which two runs differ.

    A digest that an older artifact does not hold tells nothing.
    """
    old, new = (_flatten(header.get("settings", {})) for header in (recorded, wanted))
    for key in [*new, *(k for k in old if k not in new)]:
        if old.get(key) != new.get(key) and not _same_content(key, recorded, wanted):
            return key, old.get(key), new.get(key)
    for key in wanted:
        if key.endswith(DIGEST) and recorded.get(key, wanted[key]) != wanted[key]:
            return key, recorded[key], wanted[key]
    return None


def _same_content(key: str, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a setting names a file or a folder whose content both digests tell to be the same, under other paths."""
    digest = DIGEST_OF.get(key, "")
    return recorded.get(digest) is not None and recorded[digest] == wanted.get(digest)


def check_same(path: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any], key: str = "output.dir") -> None:
    """Raises UserError naming the first difference where the artifact `path` was made by another run.

    Args:
        key: the setting or option that chose the place.
    """
    difference = first_difference(recorded, wanted)
    if difference:
        raise UserError(
            key,
            f"{path.parent} holds another run: {path.name} was made {in_words(*difference)}; "
            f"choose another place or delete {path}",
        )


def in_words(key: str, old: object, new: object) -> str:
    """What differs between a record and what is asked for, after "was made ..."."""
    if key.endswith(DIGEST):
        return f"before {CONTENTS.get(key, key.removesuffix(DIGEST))} changed"
    return f"with {key} = {old!r}, but this run has {new!r}"


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
