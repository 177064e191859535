"""Images with captions: the annotations of COCO, of Flickr, of clip_benchmark's multilingual sets, and one's own."""

import json
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from amp.data.files import printable
from amp.data.pixels import read_rgb
from amp.errors import UserError
from amp.evaluation.readers.texts import read_pairs

_OPTION = "--dataset_root"


class Captioned(Dataset[Any]):
    """(what `transform` makes of an image, its captions).

    Attributes:
        samples: (file, captions), in the order of the annotations.
    """

    classes = templates = None

    def __init__(
        self, annotations: Path, pairs: Iterable[tuple[Path, list[str]]], transform: Any, option: str = _OPTION
    ) -> None:
        """Raises UserError, with the option that named the annotations, where an image of theirs is missing or has no
        caption, or a caption is no text."""
        self.transform: Callable[[Image.Image], Any] = transform
        self.samples = [(str(file), captions) for file, captions in pairs]
        for file, captions in self.samples:
            if not captions:
                raise UserError(option, f"{annotations}: {printable(file)} has no caption")
            if wrong := [caption for caption in captions if not isinstance(caption, str)]:
                raise UserError(
                    option, f"{annotations}: a caption of {printable(file)} is {wrong[0]!r:.40}, not a text"
                )
            if not Path(file).is_file():
                raise UserError(option, f"{printable(file)} is missing, but {annotations} lists it")

    def seen_by(self, transform: Callable[[Image.Image], Any]) -> "Captioned":
        """The same images and captions, by another transform."""
        other = copy(self)
        other.transform = transform
        return other

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, list[str]]:
        file, captions = self.samples[index]
        return self.transform(read_rgb(file)), captions


def open_captions(dataset: str, root: Path, annotations: Path, transform: Any) -> Captioned:
    """A retrieval set of clip_benchmark, the pairs of the digit scenes, or one's own ('captions').

    Args:
        root: the folder of the images; unused where the annotations hold paths.
        annotations: the file.
    Raises:
        UserError: the annotations are not what they should be.
    """
    if dataset == "captions":
        own = read_pairs("--captions", annotations)
        return Captioned(annotations, [(root / name, own[name]) for name in own], transform, "--captions")
    if dataset in ("digit_scenes", "mscoco_captions"):
        pairs = _read_coco(annotations, root)
    elif dataset in ("flickr30k", "flickr8k"):
        pairs = _read_lines(annotations, root)
    else:
        pairs = _read_paths(annotations)
    return Captioned(annotations, pairs, transform)


def _read_coco(annotations: Path, root: Path) -> list[tuple[Path, list[str]]]:
    """By ascending id of the image, captions in the file's order. Captions of images that it does not list are none."""
    found = json.loads(annotations.read_text(encoding="utf-8"))
    captions_of: dict[Any, list[str]] = {}
    file_of: dict[Any, Path] = {}
    for image in found["images"]:
        number = image["id"]
        if type(number) not in (int, str) or number in file_of:
            raise UserError(
                _OPTION, f"{annotations}: image id {number!r:.40} is repeated, or is neither a number nor a text"
            )
        file_of[number] = root / image["file_name"]
    if len({type(number) for number in file_of}) > 1:
        raise UserError(_OPTION, f"{annotations}: image ids must be all numbers or all texts")
    for annotation in found["annotations"]:
        captions_of.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return [(file_of[number], captions_of.get(number, [])) for number in sorted(file_of)]


def _read_lines(annotations: Path, root: Path) -> list[tuple[Path, list[str]]]:
    """By lines `x.jpg,caption` below a header, images in the order of their first one."""
    captions_of: dict[Path, list[str]] = {}
    with annotations.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            name, mark, caption = line.strip().partition(".jpg,")
            if bool(mark) == (number == 1) and line.strip():
                expected = "a header, not a caption" if number == 1 else "FILE.jpg,CAPTION"
                raise UserError(_OPTION, f"{annotations}: line {number} is {line.strip()!r:.60}; expected {expected}")
            if mark:
                captions_of.setdefault(root / f"{name}.jpg", []).append(caption)
    return list(captions_of.items())


def _read_paths(annotations: Path) -> list[tuple[Path, list[str]]]:
    """By two lists of one length, of paths and of their captions."""
    found = json.loads(annotations.read_text(encoding="utf-8"))
    paths, captions = found["image_paths"], found["annotations"]
    if len(paths) != len(captions):
        raise UserError(_OPTION, f"{annotations}: {len(paths)} image_paths but {len(captions)} annotations")
    return [(Path(path), [caption]) for path, caption in zip(paths, captions, strict=True)]
