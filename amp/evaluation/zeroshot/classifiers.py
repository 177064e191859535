"""Files of text classifiers: the (D, C) weights that class names and templates give, with what they belong to.

Shapes: C classes, D width of an embedding.
"""

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from amp.errors import UserError, under
from amp.run.files import atomic, json_sha256
from amp.run.sealed import HEADER, read_tensors, write_tensors
from amp.towers import Tower


def classifier_header(tower: Tower, dataset: str, language: str, built: Any) -> dict[str, str]:
    """What a text classifier belongs to, for its file; `built` is the dataset with its classes and templates."""
    name = str(tower.base["name"])
    return {
        "format": "1",
        "frame": str(tower.base["frame"]),
        "model": Path(name).stem if name.endswith(".json") else name,
        "dataset": dataset,
        "language": language,
        "num_classes": str(len(built.classes)),
        "classes_sha256": json_sha256(built.classes),
        "templates_sha256": json_sha256(built.templates),
    }


def save_classifier(path: Path, classifier_DC: Tensor, header: Mapping[str, str]) -> None:
    """Writes one tensor `classifier`, and the header, as safetensors."""
    with atomic(path) as partial_path:
        write_tensors(partial_path, {"classifier": classifier_DC}, {**header, "embed_width": str(len(classifier_DC))})


def load_classifiers(
    paths: Iterable[str], header: Mapping[str, str], embed_width: int, any_model: bool = False
) -> Tensor:
    """The mean (D, C) of classifiers from `save_classifier`, or of clip_benchmark's, which are bare tensors.

    Args:
        header: of the model and dataset at hand. Other templates are welcome, and the same dataset in another
            language: their mean is an ensemble.
        embed_width: D of the model at hand.
        any_model: whether another model may have made them, as for a tower that has no text encoder of its own.
    Raises:
        UserError: unreadable, more than tensors (never executed), or made for another model or dataset.
    """
    classifiers = []
    num_classes = int(header["num_classes"])
    for path in paths:
        classifier_DC, found = _read_classifier(path)
        found = {**header, **found}
        translated = found["dataset"] == header["dataset"] and found["language"] != header["language"]
        keys = [*([] if any_model else ["frame", "model"]), *([] if translated else ["classes_sha256"])]
        for key in keys:
            if found[key] != header[key]:
                own, other = (f"{h['frame']} {h['model']} on {h['dataset']}" for h in (header, found))
                raise UserError("--load_clfs", f"{path}: was made for {other}, not for {own} ({key} differs)")
        shape = list(classifier_DC.shape)
        if len(shape) != 2 or shape[1] != num_classes:
            raise UserError("--load_clfs", f"{path}: shape {shape}; {header['dataset']} needs {num_classes} columns")
        if shape[0] != embed_width:
            raise UserError(
                "--load_clfs",
                f"{path}: embeddings of width {shape[0]}, but the image embeddings of {header['model']} have width "
                f"{embed_width}; give a classifier made by the text tower of that model",
            )
        if not classifier_DC.isfinite().all():
            raise UserError("--load_clfs", f"{path}: holds values that are NaN or infinite")
        classifiers.append(classifier_DC.float())
    return sum((c / len(classifiers) for c in classifiers), torch.zeros(embed_width, num_classes))


def _read_classifier(path: str) -> tuple[Tensor, dict[str, str]]:
    """The tensor and its header, which is {} for a bare tensor."""
    try:
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            if HEADER not in found:
                return file.get_tensor("classifier"), found
    except OSError as error:
        raise UserError("--load_clfs", f"{path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError:
        return _read_bare(path), {}
    with under("--load_clfs"):
        header, tensors = read_tensors(Path(path))
    if "classifier" not in tensors:
        raise UserError("--load_clfs", f"{path}: holds no text classifier")
    return tensors["classifier"], header


def _read_bare(path: str) -> Tensor:
    """A tensor that torch.save wrote, as clip_benchmark does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols
            classifier = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        refused = "refused: it holds more than tensors, and loading it could run code"
        reason = refused if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise UserError(
            "--load_clfs", f"{path}: not a text classifier ({reason}); give a file that --save_clf wrote"
        ) from None
    if not isinstance(classifier, Tensor):
        raise UserError("--load_clfs", f"{path}: holds a {type(classifier).__name__}, expected one tensor")
    return classifier
