"""Digit scenes: a small data set with captions, drawn from the handwritten digits that scikit-learn bundles.

A scene is a 32x32 RGB picture of one or two digits in six colours on a noisy ground, and one caption: "a red three",
"a red three left of a blue seven". A digit (8x8 in the source) is drawn 16x16 on an 8-pixel grid, so that it fills
whole 8-pixel patches; two digits never overlap. Scenes to train on and scenes to test on show different handwriting.

    root/train/{one,two}/*.png                     scenes of training digits, 40 % with one digit
    root/val/{one,two}/*.png                       other scenes of training digits
    root/test/<00_red_zero ...>/*.png              one test digit each; the folders sort as CLASS_NAMES
    root/pairs/*.png                               two test digits each; every caption is unique
    root/annotations/captions_{train,pairs}.json   COCO captions; file names relative to root/train, root/pairs
    root/scenes.json                               the marker of a whole build: format, settings, counts
"""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from amp.errors import UserError
from amp.run.console import progress, say

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "above")  # their mirror images would give one scene two captions
CLASS_NAMES = tuple(f"{colour} {digit}" for colour in COLOURS for digit in DIGITS)

FORMAT = 1  # of the folder; a change of anything drawn or written counts it up
MARKER = "scenes.json"

_IMAGE_SIZE = 32  # pixels, as are the next two
_DIGIT_SIZE = 16
_GRID = (0, 8, 16)  # where a digit's upper left corner may lie, on either axis
_RGB = np.array(
    [(225, 45, 45), (50, 190, 60), (60, 90, 240), (235, 215, 50), (190, 60, 200), (60, 215, 220)], np.float32
)
_ONE_DIGIT_SHARE = 0.4
_NUM_CLASSES = len(CLASS_NAMES)
_NUM_TWO = len(RELATIONS) * _NUM_CLASSES**2  # two-digit captions there are


class Scene(NamedTuple):
    """What a scene shows: one or two indices into CLASS_NAMES, and how the first stands to the second."""

    classes: tuple[int, ...]
    relation: str = ""

    @property
    def caption(self) -> str:
        """'a red three', or 'a red three left of a blue seven'."""
        return f" {self.relation} ".join(f"a {CLASS_NAMES[c]}" for c in self.classes)


def split_digits() -> tuple[np.ndarray, np.ndarray]:
    """Indices into `load_digits` of the 1,437 training digits and of the 360 test digits; the same in every build."""
    order = np.random.default_rng(0).permutation(1797)
    return np.sort(order[360:]), np.sort(order[:360])


def build_scenes(
    root: Path,
    num_train: int = 12_000,
    num_val: int = 1024,
    num_test: int = 1200,
    num_pairs: int = 512,
    seed: int = 0,
) -> None:
    """Writes the scenes to `root`, and says so; does nothing if `root` holds a whole build, of whatever settings.

    The same arguments give the same bytes. The files go to a hidden folder beside `root`, which takes the name
    `root` when it is whole: a killed build leaves nothing under that name, and of several processes that build
    at once the first to end wins.
    Raises UserError when `root` holds anything but a whole build, or when a count is out of range.
    """
    given, root = root, Path(root).resolve()
    if _is_built(root):
        return
    settings = dict(num_train=num_train, num_val=num_val, num_test=num_test, num_pairs=num_pairs, seed=seed)
    _check_settings(settings)
    say(f"building the digit scenes in {given}")
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        _write(partial, settings)
        try:
            os.rename(partial, root)  # raises OSError where another process has put a build
        except OSError:
            if not _is_built(root):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_built(root: Path) -> bool:
    """True for a whole build, False for a free name or an empty folder. Raises UserError for anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        marker = json.loads((root / MARKER).read_text())
        found_format, counts = marker["format"], dict(marker["counts"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(root, f"is not a digit-scenes folder (no {MARKER}); give a new or an empty folder") from None
    if found_format != FORMAT:
        raise UserError(
            root, f"holds digit scenes of format {found_format} instead of {FORMAT}; delete it to rebuild them"
        )
    for folder, count in counts.items():
        found = sum(1 for _ in (root / folder).glob("*.png"))
        if found != count:
            raise UserError(root, f"{folder} holds {found} of {count} images; delete {root} to rebuild it")
    return True


def _check_settings(settings: dict[str, int]) -> None:
    """Raises UserError for a count that leaves a folder empty, or that asks for more captions than there are."""
    limits = {
        "num_train": (2, 100_000),
        "num_val": (2, 100_000),
        "num_test": (_NUM_CLASSES, 100_000),
        "num_pairs": (1, _NUM_TWO),
        "seed": (0, 2**32 - 1),
    }
    for name, (low, high) in limits.items():
        if not low <= settings[name] <= high:
            raise UserError("digit scenes", f"{name} is {settings[name]}; allowed: {low} to {high}")


def _write(root: Path, settings: dict[str, int]) -> None:
    """Writes a whole build of `settings` under the empty folder `root`, the marker last."""
    train_digits, test_digits = _load_digits()
    folders = _plan(settings)
    with progress(None, "digit scenes", "scene", total=sum(map(len, folders.values()))) as bar:
        for stream, (folder, scenes) in enumerate(folders.items()):
            digits = train_digits if folder.startswith(("train/", "val/")) else test_digits
            rng = np.random.default_rng((settings["seed"], 1, stream))
            (root / folder).mkdir(parents=True)
            for index, scene in enumerate(scenes):
                image = Image.fromarray(_draw(scene, digits, rng))
                image.save(root / folder / _file_name(index), compress_level=1)
                bar.update()
    (root / "annotations").mkdir()
    for top in ("train", "pairs"):
        captions = {
            f"{folder}/{_file_name(index)}".removeprefix(f"{top}/"): scene.caption
            for folder, scenes in folders.items()
            if folder.split("/")[0] == top
            for index, scene in enumerate(scenes)
        }
        (root / f"annotations/captions_{top}.json").write_text(json.dumps(_coco(captions)))
    counts = {folder: len(scenes) for folder, scenes in folders.items()}
    marker = {"format": FORMAT, "settings": settings, "counts": counts}
    (root / MARKER).write_text(json.dumps(marker, indent=2) + "\n")


def _plan(settings: dict[str, int]) -> dict[str, list[Scene]]:
    """Folder -> what its scenes show. Each folder has a random stream of its own, so the counts do not mix."""
    folders: dict[str, list[Scene]] = {}
    for stream, top in enumerate(("train", "val")):
        rng_one, rng_two = (np.random.default_rng((settings["seed"], 0, stream, n)) for n in (1, 2))
        total = settings[f"num_{top}"]
        num_one = max(1, int(_ONE_DIGIT_SHARE * total))
        folders[f"{top}/one"] = [Scene((int(c),)) for c in rng_one.integers(_NUM_CLASSES, size=num_one)]
        folders[f"{top}/two"] = [_two_digits(int(n)) for n in rng_two.integers(_NUM_TWO, size=total - num_one)]
    for index, name in enumerate(CLASS_NAMES):
        count = -((index - settings["num_test"]) // _NUM_CLASSES)  # the first classes get one more, if any do
        folders[f"test/{index:02d}_{name.replace(' ', '_')}"] = [Scene((index,))] * count
    rng = np.random.default_rng((settings["seed"], 0, 2))
    unique = rng.choice(_NUM_TWO, size=settings["num_pairs"], replace=False)
    folders["pairs"] = [_two_digits(int(n)) for n in unique]
    return folders


def _two_digits(number: int) -> Scene:
    """The two-digit scene of a number in 0.._NUM_TWO - 1; each number has another caption."""
    relation, classes = divmod(number, _NUM_CLASSES**2)
    return Scene(divmod(classes, _NUM_CLASSES), RELATIONS[relation])


def _load_digits() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Digits to train on and to test on: for each label a float32 (N, 16, 16), 1 where the ink is full."""
    source = load_digits()
    small = [Image.fromarray(np.float32(digit / 16)) for digit in source.images]
    large = [image.resize((_DIGIT_SIZE, _DIGIT_SIZE), Image.Resampling.BILINEAR) for image in small]
    inks = np.stack([np.asarray(image) for image in large])
    train, test = split_digits()
    return (
        [inks[train][source.target[train] == label] for label in range(len(DIGITS))],
        [inks[test][source.target[test] == label] for label in range(len(DIGITS))],
    )


def _draw(scene: Scene, digits: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The picture of a scene, uint8 (32, 32, 3); handwriting, places, shades and noise are drawn from `rng`."""
    picture = rng.normal(rng.uniform(20, 80), 15, (_IMAGE_SIZE, _IMAGE_SIZE, 3)).astype(np.float32)
    for class_index, (y, x) in zip(scene.classes, _corners(scene, rng), strict=True):
        colour, label = divmod(class_index, len(DIGITS))
        ink = digits[label][rng.integers(len(digits[label]))][:, :, None]
        shade = _RGB[colour] + rng.normal(0, 12, 3).astype(np.float32)
        spot = picture[y : y + _DIGIT_SIZE, x : x + _DIGIT_SIZE]
        spot += ink * (shade - spot)
    return picture.clip(0, 255).astype(np.uint8)


def _corners(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The upper left corner (y, x) of each digit, in pixels."""
    if len(scene.classes) == 1:
        return [(int(rng.choice(_GRID)), int(rng.choice(_GRID)))]
    # A digit apart one way and at most half a digit the other way: never both left of and above.
    across = [(a, b) for a in _GRID for b in _GRID if abs(a - b) < _DIGIT_SIZE]
    first, second = across[rng.integers(len(across))]
    corners = [(first, 0), (second, _DIGIT_SIZE)]
    return corners if scene.relation == "left of" else [(x, y) for y, x in corners]


def _file_name(index: int) -> str:
    return f"{index:05d}.png"


def _coco(captions: dict[str, str]) -> dict[str, Any]:
    """COCO captions of file name -> caption. It holds no date: the same captions give the same bytes."""
    size = {"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}
    source = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
    return {
        "info": {
            "description": "Digit scenes from the handwritten digits of scikit-learn",
            "version": str(FORMAT),
        },
        "licenses": [{"id": 1, "name": "CC BY 4.0", "url": source}],
        "images": [{"id": i, "file_name": name, **size, "license": 1} for i, name in enumerate(captions)],
        "annotations": [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(captions.values())],
    }
