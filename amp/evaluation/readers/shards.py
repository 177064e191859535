"""Data sets in the layout of clip_benchmark's export to webdataset.

    root/test/{0.tar, 1.tar, ...}, root/test/nshards.txt, root/dataset_type.txt (classification, multilabel, retrieval)
    root/classnames.txt, root/zeroshot_classification_templates.txt

A sample is an image with `.cls` (a label), `.npy` (0 or 1 for each class) or `.txt` (a caption a line). No other member
is opened: webdataset's own decoders run the code that pickles hold.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from amp.data.files import printable
from amp.data.pixels import EXTENSIONS, read_rgb
from amp.data.shards import Member, list_samples
from amp.errors import UserError
from amp.evaluation.readers.texts import read_lines, read_templates

_OPTION = "--dataset_root"
_FIELDS = {"classification": "cls", "multilabel": "npy", "retrieval": "txt"}


class Shards(Dataset[Any]):
    """(what `transform` makes of an image, its label, labels or captions) of every sample, in the shards' order.

    Attributes:
        classes, templates: the lines of the two files, None for retrieval.
        samples: (member of the image, target).
    """

    def __init__(self, root: Path, task: str, transform: Callable[[Image.Image], Any]) -> None:
        """Raises UserError where the files do not make a dataset of this task ('zeroshot_retrieval' or another)."""
        self.transform = transform
        kind_file = root / "dataset_type.txt"
        kind = kind_file.read_text().strip().lower() if kind_file.is_file() else "classification"
        if kind not in _FIELDS:
            raise UserError(_OPTION, f"{kind_file}: {printable(kind)!r}; allowed: {', '.join(_FIELDS)}")
        if (kind == "retrieval") != (task == "zeroshot_retrieval"):
            raise UserError("--task", f"{root} is for {kind} (dataset_type.txt), not for {task}")
        self.classes: list[str] | None = None
        self.templates: list[str] | None = None
        if kind != "retrieval":
            self.classes = read_lines(_OPTION, root / "classnames.txt")
            self.templates = read_templates(_OPTION, root / "zeroshot_classification_templates.txt")
        number = int((root / "test/nshards.txt").read_text())
        shards = [str(root / f"test/{index}.tar") for index in range(number)]
        self.samples: list[tuple[Member, Any]] = []
        for sample in list_samples(shards, _OPTION):
            image, target = sample.image(EXTENSIONS, _OPTION), sample.fields.get(_FIELDS[kind])
            if image is None or target is None:
                lacking = "image" if image is None else f".{_FIELDS[kind]}"
                raise UserError(_OPTION, f"{printable(sample.key)}: the sample has no {lacking}")
            self.samples.append((image, _read_target(kind, target, len(self.classes or ()))))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        member, target = self.samples[index]
        return self.transform(read_rgb(member)), target


def _read_target(kind: str, member: Member, num_classes: int) -> Any:
    try:
        content = member.read()
        if kind == "retrieval":
            captions = content.decode("utf-8").splitlines()
            if not captions:
                raise ValueError("no caption")
            return captions
        if kind == "classification":
            label = int(content)
            if not 0 <= label < num_classes:
                raise ValueError(
                    f"label {label}; classnames.txt has {num_classes} classes, so 0 to {num_classes - 1} are allowed"
                )
            return label
        labels_C = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        if labels_C.shape != (num_classes,) or not np.isin(labels_C, (0, 1)).all():
            raise ValueError(f"labels of shape {labels_C.shape}; expected 0 or 1 for each of {num_classes} classes")
        return labels_C
    except (OSError, ValueError, MemoryError, EOFError) as error:
        raise UserError(_OPTION, f"{printable(member)}: {printable(error)}") from None
