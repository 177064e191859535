"""From an image file to 8-bit RGB, by one rule for scoring, pruning, distillation and evaluation.

- 8-bit images (greyscale, palette, CMYK, with transparency, ...) are converted as Pillow does: transparency is dropped.
- 16-bit greyscale is divided by 257, so that black and white stay black and white.
- Floating-point images hold values from 0 to 1, which are multiplied by 255; any other value is refused.
- Of an animation the first image is taken. An orientation that EXIF notes is not applied, as in open_clip, timm,
  torchvision and clip_benchmark.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from amp.data.files import printable, walk
from amp.data.shards import Member

# What Pillow decodes by itself; of others it calls a program (EPS: ghostscript) or a library that it does not bring.
_BY_ITSELF = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM"),
    *("QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
EXTENSIONS = frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in _BY_ITSELF)
FORMATS = tuple(kind for kind in _BY_ITSELF if kind in Image.OPEN)
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def image_files(folder: str | Path, key: str) -> Iterator[Path]:
    """The image files of a folder, at any depth, by their names; args and errors as of `amp.data.files.walk`."""
    return (path for path in walk(folder, key) if path.suffix.lower() in EXTENSIONS)


class BrokenImageError(ValueError):
    """A file that is no image which can be read; says why in one line."""


def read_rgb(source: object) -> Image.Image:
    """The image of a file (a path) or of a `Member` as RGB, 8 bits. Raises BrokenImageError."""
    try:
        with Image.open(
            io.BytesIO(source.read()) if isinstance(source, Member) else str(source), formats=FORMATS
        ) as file:
            return as_rgb(file)
    except BrokenImageError:
        raise
    except UnidentifiedImageError:
        raise BrokenImageError("not an image of a known format") from None
    except Exception as error:  # a damaged file fails in any way
        lines = str(error).replace(str(source), "").strip(" :'").splitlines() or [type(error).__name__]
        raise BrokenImageError(printable(lines[0])) from None


def as_rgb(image: Image.Image) -> Image.Image:
    """An open image as RGB, 8 bits, by the rule above. Raises BrokenImageError for values without such a meaning."""
    if image.format is not None and image.format not in FORMATS:
        raise BrokenImageError("not an image of a known format")
    if image.mode in _SIXTEEN_BITS or image.mode == "I":
        image.load()
        return _rgb((_within(np.asarray(image), 65535).astype(np.uint32) + 128) // 257)
    if image.mode == "F":
        image.load()
        return _rgb(np.rint(_within(np.asarray(image), 1) * 255))
    return image.convert("RGB")


def _rgb(grey_HW: np.ndarray) -> Image.Image:
    return Image.fromarray(grey_HW.astype(np.uint8)).convert("RGB")


def _within(values_HW: np.ndarray, high: int) -> np.ndarray:
    low, top = values_HW.min(), values_HW.max()
    if not (low >= 0 and top <= high):  # also where they are no numbers
        kind = "16-bit" if high > 1 else "floating-point"
        raise BrokenImageError(f"values from {low:g} to {top:g}; a {kind} image holds 0 to {high}")
    return values_HW
