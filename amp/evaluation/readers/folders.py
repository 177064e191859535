"""Class folders, and what clip_benchmark builds of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import DatasetFolder

from amp.data.files import is_litter, walk
from amp.data.pixels import EXTENSIONS, as_rgb, read_rgb
from amp.errors import UserError


class ClassFolders(Dataset[Any]):
    """(what `transform` makes of an image, label) of every image below class folders; labels by their sorted names.

    Attributes:
        classes: the folders' names.
        samples: (file, label), by label and then by file.
    """

    def __init__(self, option: str, root: str | Path, transform: Callable[[Image.Image], Any]) -> None:
        """Raises UserError, with the option that named `root`, where a class folder holds no image."""
        self.transform = transform
        try:
            self.classes = sorted(p.name for p in Path(root).iterdir() if p.is_dir() and not is_litter(p.name))
        except OSError as error:
            raise UserError(option, f"{root}: cannot be read ({error.strerror})") from None
        if not self.classes:
            raise UserError(option, f"{root}: holds no class folder")
        self.samples: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            files = sorted(str(p) for p in walk(Path(root) / name, option) if p.suffix.lower() in EXTENSIONS)
            if not files:
                raise UserError(option, f"{root}: no image in the class folder {name}")
            self.samples += [(file, label) for file in files]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file, label = self.samples[index]
        return self.transform(read_rgb(file)), label


def tidy(dataset: Any, option: str) -> None:
    """Lets a dataset of torchvision or clip_benchmark decode as we do, and take no litter for an image.

    Raises:
        UserError: a hidden folder counts as a class, so that every label after it is another.
    """
    classes = getattr(dataset, "categories", None) or [*getattr(dataset, "class_to_idx", ())]
    for name in classes:
        if isinstance(name, str) and is_litter(name):
            raise UserError(option, f"{dataset.root}: {name} counts as a class; remove it")
    if isinstance(dataset, DatasetFolder):
        dataset.loader = read_rgb
        dataset.samples = [(file, label) for file, label in dataset.samples if not is_litter(Path(file).name)]
        dataset.imgs, dataset.targets = dataset.samples, [label for _, label in dataset.samples]
    if getattr(dataset, "transform", None) is not None:
        dataset.transform = _Decoded(dataset.transform)


class _Decoded:
    """A transform of images that Pillow may have opened only."""

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        return self.transform(as_rgb(image) if isinstance(image, Image.Image) else image)
