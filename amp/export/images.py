"""The preprocessing of a tower as plain data, so that programs with only PIL and numpy can apply it."""

from typing import Any

from amp.errors import UserError
from amp.towers import Tower
from amp.towers.preprocess import framing

FORMAT = 1
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def describe_images(tower: Tower) -> dict[str, Any]:
    """Describes the evaluation transform as a dictionary that JSON can hold.

    The steps are: convert to RGB; resize to `resize` pixels with PIL's filter `interpolation` (`resize_mode` shortest:
    the shorter side gets that size and the longer one is rounded down; longest: the longer side gets that size and the
    shorter one is rounded; squash: both sides get it); crop the central square of side `size`, padding shorter sides
    with `fill`; divide by 255; subtract `mean` and divide by `std`.

    Raises:
        UserError: the transform has other steps.
    """
    own = tower.preprocess
    mode, resize, fill = framing(own)
    if mode not in ("shortest", "longest", "squash") or own["interpolation"] not in FILTERS:
        told = f"{mode}, {own['interpolation']}"
        raise UserError(
            "model.transform", f"the way images are resized ({told}) cannot be described in the .preprocess.json file"
        )
    return {
        "format": FORMAT,
        "color": "RGB",
        "resize": resize,
        "resize_mode": mode,
        "interpolation": own["interpolation"],
        "crop": "center",
        "size": tower.image_size,
        "fill": fill,
        "rescale": 255,
        "mean": list(own["mean"]),
        "std": list(own["std"]),
        "layout": "NCHW",
        "dtype": "float32",
    }
