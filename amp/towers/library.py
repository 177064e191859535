"""What a library's file in `frames/` states about itself. A new library is a new file there, with a `LIBRARY`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from amp.registry import FRAMES
from amp.settings.model import Frame, GivenModelSettings, ModelSettings
from amp.towers.base import Tower
from amp.towers.weights import WRAPPED


@dataclass(frozen=True)
class Library:
    """Of a file `frames/x.py`, whose models the settings ask for by `frame: x`.

    Attributes:
        known_as: what it is called in messages.
        knows: whether it has a model of this name; answered without the internet.
        build: the tower of (settings, device, the `base` of an earlier Tower or None); see `amp.towers.build_tower`.
        wrap: the tower around a model object of this library, in eval mode and frozen, None around any other; see
            `amp.towers.wrap_tower`. Without it the library has no models of its own.
        families: (family, MLP layout, an example's name) of what can be pruned, for people.
        tags: of the weights that the library has of a name.
        names: every name it knows; None where nobody can list them.
        folders: whether its models are folders and hub ids, not names.
        own_files: what the weights files are called that no other library reads, for messages.
        checkpoint_keys: by which keys a training checkpoint of several sets holds the weights that the library takes,
            the first one there.
    """

    known_as: str
    knows: Callable[[str], bool]
    build: Callable[[ModelSettings, str, dict[str, Any] | None], Tower]
    families: Sequence[tuple[str, str, str]]
    tags: Callable[[str], Sequence[str]] = lambda name: ()
    names: Callable[[], list[str]] | None = None
    wrap: Callable[[nn.Module, GivenModelSettings], Tower | None] | None = None
    folders: bool = False
    own_files: str | None = None
    checkpoint_keys: Sequence[str] = WRAPPED


def library(frame: Frame) -> Library:
    """Of a frame; its packages are imported now, so that nobody waits for a library that they do not use."""
    own: Library = FRAMES.load(frame).LIBRARY
    return own
