"""What is said of the images that a tower reads, and of the tags of a name that do not agree on them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amp.errors import UserError
from amp.run.console import detail, say
from amp.settings.base import MOST_SIDE
from amp.settings.model import ModelSettings
from amp.towers.base import Tower


def square(settings: ModelSettings, size: Any) -> int:
    """A model's image size as one side. Raises UserError for images that are not square, or larger than MOST_SIDE."""
    sides = {size} if isinstance(size, int) else set(size)
    key = "model.kwargs" if settings.kwargs else "model.name"
    if len(sides) != 1:
        asked = " x ".join(map(str, size))
        raise UserError(key, f"{settings.name}: takes images of {asked} px; only square ones are supported")
    side = int(sides.pop())
    if not 1 <= side <= MOST_SIDE:
        raise UserError(key, f"{settings.name}: takes images of {side} px; 1 to {MOST_SIDE} are supported")
    return side


def describe_preprocess(tower: Tower) -> str:
    """The evaluation transform in one line, and a line for each of the tower's notes.

    Such as `images: 224 px, bicubic, squashed, mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)`.
    """
    own = tower.preprocess
    statistics = (f"{key} ({', '.join(f'{value:g}' for value in own[key])})" for key in ("mean", "std"))
    line = ", ".join([f"images: {tower.image_size} px", str(own["interpolation"]), _framing(own), *statistics])
    return "\n".join([line, *tower.notes])


def tell_preprocess(tower: Tower) -> None:
    """The tower's notes on the console, and among the details its evaluation transform."""
    line, *notes = describe_preprocess(tower).splitlines()
    detail(line)
    for note in notes:
        say(note)


def framing(own: Mapping[str, Any]) -> tuple[str, int, list[int]]:
    """How an image of any shape becomes a square, of a tower's `preprocess`, whatever its library calls it.

    Returns:
        mode: shortest, longest or squash: which side the resizing is about; the library's word for any other.
        resize: that side in pixels; the square is cut out of its middle.
        fill: of the borders of an image that is smaller than the square, RGB, 0 to 255.
    """
    size = own["size"] if isinstance(own["size"], int) else own["size"][0]
    words = {"center": "shortest", "border": "longest"}
    mode = own.get("crop_mode") or own.get("resize_mode") or ("squash" if own.get("squash") else "shortest")
    fill = [round(255 * level) for level in own["mean"]] if mode == "border" else [own.get("fill_color") or 0] * 3
    resize = own.get("resize") or math.floor(size / (own.get("crop_pct") or 1.0))
    return words.get(mode, mode), resize, fill


def _framing(own: Mapping[str, Any]) -> str:
    """In words; `crop` is the side of the square over that of the resized image."""
    mode = framing(own)[0]
    share = own.get("crop_pct") or (own["size"] / own["resize"] if "resize" in own else 1.0)
    if mode in ("squash", "longest"):
        words = {"squash": "squashed", "longest": "padded"}[mode]
        return words if round(share, 3) == 1 else f"{words}, crop {share:.3g}"
    return f"crop {share:.3g}" if mode == "shortest" else f"crop {share:.3g} ({mode})"


def agreed(name: str, by_tag: Mapping[str, Mapping[str, Any]], taken: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where the tags of a name do not all say what is `taken`; none where they do.

    Args:
        by_tag: what each pretrained tag of the name says of its images.
    """
    others = [tag for tag, own in by_tag.items() if _differ(own, taken)]
    if not others:
        return ()
    return (
        f"note: the tags of {name} use different preprocessing ({_listed(others)} differ from the one used here); "
        "set model.transform to that of your weights",
    )


def _differ(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return any(_plain(own[key]) != _plain(other[key]) for key in own.keys() & other.keys())


def _plain(value: Any) -> Any:
    return [*value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _listed(words: Iterable[str], most: int = 3) -> str:
    words = [*words]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
