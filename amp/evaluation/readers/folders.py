"""Images in folders, with the class that a folder stands for, or without."""

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from amp.data.pixels import read_rgb
from amp.errors import UserError
from amp.evaluation.readers.class_folders import class_names, images_below
from amp.run.console import say


class ClassFolders(Dataset[Any]):
    """(what `transform` makes of an image, label) of every image below class folders; labels by their sorted names.

    Attributes:
        classes: the folders' names.
        samples: (file, label), by label and then by file.
    """

    def __init__(self, option: str, root: str | Path, transform: Callable[[Image.Image], Any]) -> None:
        """Raises UserError, with the option that named `root`, where a class folder holds no image."""
        self.transform = transform
        self.classes = class_names(option, root)
        self.samples: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            files = sorted(images_below(option, Path(root) / name))
            if not files:
                raise UserError(option, f"{root}: the class folder {name} holds no image")
            self.samples += [(file, label) for file in files]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file, label = self.samples[index]
        return self.transform(read_rgb(file)), label

    def seen_by(self, transform: Callable[[Image.Image], Any]) -> "ClassFolders":
        """The same images, by another transform."""
        other = copy(self)
        other.transform = transform
        return other

    def only(self, samples: Sequence[tuple[str, int]]) -> "ClassFolders":
        """The same classes, with some of the images."""
        part = copy(self)
        part.samples = [*samples]
        return part


def open_divided(
    train_root: str, val_root: str, held_out: int | None, transform: Callable[[Image.Image], Any]
) -> tuple[ClassFolders, ClassFolders]:
    """The images to learn from, and those to test on.

    Args:
        held_out: None where the two folders hold them; N where both are one folder, of which one image in N of each
            class is tested on, which is said.
    Raises:
        UserError: a class folder holds no image, or nothing is left to test on.
    """
    train = ClassFolders("--train_root", train_root, transform)
    if held_out is None:
        return train, ClassFolders("--val_root", val_root, transform)
    own, tested = divide(train, held_out)
    if not tested.samples:
        raise UserError(
            "--held_out", f"{held_out}: no class of {train_root} has that many images; use a smaller number"
        )
    of_all = f"{len(tested)} of {len(train)} images"
    say(f"{train_root} has no train/: testing on {of_all}, one in {held_out} of each class, not used for training")
    return own, tested


def divide(images: ClassFolders, every: int) -> tuple[ClassFolders, ClassFolders]:
    """All but every N-th image of each class, in the order of the files' names, and those."""
    kept: list[tuple[str, int]] = []
    held_out: list[tuple[str, int]] = []
    counts = [0] * len(images.classes)
    for file, label in images.samples:
        counts[label] += 1
        (kept if counts[label] % every else held_out).append((file, label))
    return images.only(kept), images.only(held_out)


class ImageFiles(Dataset[Any]):
    """(what `transform` makes of an image,) of files, whatever they show.

    Attributes:
        samples: (file,), in order.
    """

    def __init__(self, files: Sequence[str], transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform
        self.samples = [(file,) for file in files]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any]:
        return (self.transform(read_rgb(self.samples[index][0])),)
