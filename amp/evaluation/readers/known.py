"""What torchvision and clip_benchmark make of their data sets, opened and decoded by the rule of `amp.data.pixels`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import DatasetFolder

from amp.data.files import is_litter
from amp.data.pixels import as_rgb, read_rgb
from amp.errors import UserError

Box = tuple[int, int, int, int]


class Reopened(Dataset[Any]):
    """(what `transform` makes of the image of a file, its target), for a data set that opens its files itself.

    Attributes:
        samples: (file, target), in order.
        boxes: the part of each image that is meant, in pixels; None for the whole ones.
    """

    def __init__(self, dataset: Any, samples: Sequence[tuple[str, Any]], boxes: Sequence[Box] | None = None) -> None:
        """`dataset` has classes, templates and a transform."""
        self.classes, self.templates = dataset.classes, dataset.templates
        self.transform, self.target_transform = dataset.transform, dataset.target_transform
        self.samples, self.boxes = samples, boxes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        file, target = self.samples[index]
        image = read_rgb(file)
        if self.boxes is not None:
            image = image.crop(self.boxes[index])
        return self.transform(image), target if self.target_transform is None else self.target_transform(target)


def tidy(dataset: Any, option: str) -> Any:
    """The data set, which decodes as we do, and takes no litter for an image.

    Raises:
        UserError: a hidden folder counts as a class, so that every label after it is another.
    """
    classes = getattr(dataset, "categories", None) or [*getattr(dataset, "class_to_idx", ())]
    for name in classes:
        if isinstance(name, str) and is_litter(name):
            raise UserError(option, f"{dataset.root}: {name} would count as a class; remove it")
    if isinstance(dataset, DatasetFolder):
        dataset.loader = read_rgb
        dataset.samples = [(file, label) for file, label in dataset.samples if not is_litter(Path(file).name)]
        dataset.imgs, dataset.targets = dataset.samples, [label for _, label in dataset.samples]
    elif (samples := _samples(dataset)) is not None:
        return Reopened(dataset, samples, _boxes(dataset))
    if getattr(dataset, "transform", None) is not None:
        dataset.transform = _Decoded(dataset.transform)
    return dataset


def _samples(dataset: Any) -> list[tuple[str, Any]] | None:
    """(file, target) of every image, of a data set whose `__getitem__` opens the file; None of others.

    So do, of torchvision, those that keep `_samples` (StanfordCars, GTSRB, RenderedSST2) or `_labels` beside
    `_image_files` (Food101, SUN397, FGVCAircraft, DTD, Flowers102) or `_images` (OxfordIIITPet); and clip_benchmark's
    two of VOC2007.
    """
    own = vars(dataset)
    if "_samples" in own:
        return [(str(file), target) for file, target in own["_samples"]]
    if "path_images" in own:
        pairs = (
            ((path, own["labels"][i]) for i, path in enumerate(own["paths"]))
            if "paths" in own
            else ((path, label) for path, _, label in own["bndboxes"])
        )
        return [(os.path.join(own["path_images"], f"{path}.jpg"), target) for path, target in pairs]
    files = own.get("_image_files", own.get("_images"))
    return None if files is None else [(str(f), label) for f, label in zip(files, own["_labels"], strict=True)]


def _boxes(dataset: Any) -> list[Box] | None:
    return [box for _, box, _ in dataset.bndboxes] if hasattr(dataset, "bndboxes") else None


class _Decoded:
    """A transform of images that Pillow may have opened only."""

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        return self.transform(as_rgb(image) if isinstance(image, Image.Image) else image)
