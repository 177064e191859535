"""How a picture becomes what a tower reads, as plain data: whoever has PIL and numpy can do it."""

from typing import Any

from amp.errors import UserError
from amp.towers import Tower
from amp.towers.preprocess import framing

FORMAT = 1
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def describe_images(tower: Tower) -> dict[str, Any]:
    """The evaluation transform, JSON-able.

    RGB; resized to `resize` by PIL's filter `interpolation` (`resize_mode` shortest: the shorter side becomes that, the
    longer one is cut down to whole pixels; longest: the longer side becomes that, the shorter one is rounded; squash:
    both); the middle square of side `size`, where a shorter side is filled up with `fill`; from 0-255 to 0-1; less
    `mean`, over `std`.

    Raises:
        UserError: the transform is not made of these.
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
