"""What a library's file in `frames/` states about itself. A new library is a new file there, with a `LIBRARY`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from amp.registry import FRAMES
from amp.settings.model import RANDOM, Frame, GivenModelSettings, ModelSettings
from amp.towers.base import Tower
from amp.towers.heads.slots import HeadSlot
from amp.towers.weights import WRAPPED

FOLDER = "path/to/this/folder"  # In the Python of a README, where the reader's own path goes.


@dataclass(frozen=True)
class Files:
    """What a pruned model's folder holds beside its weights, so that its library loads it without this project.

    Attributes:
        library_name: the library's name on the Hub.
        why: what should be said before `loading`, in a sentence; nothing where it is the library's own way.
        loading: Python that loads the model from FOLDER.
        json: JSON objects by file name. What stands in `config.json` stands beside our own keys, unless `alone`.
        texts: other files by name.
        copied: files of the dense model's folder that go along.
        alone: whether `config.json` is the library's alone; our description of the model then stands in a file of ours.
    """

    library_name: str
    why: str
    loading: str
    json: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    copied: Sequence[Path] = ()
    alone: bool = False


@dataclass(frozen=True)
class Native:
    """How a library's own files and objects say what a sliced tower is.

    Attributes:
        files: what a folder of a settled tower holds for the library.
        origin: `{base_model, license, ...}` of the weights of (a tower's `base`, tag or file), as the Hub's model cards
            say it; what nobody knows is left out.
        settle: makes what the sliced model says of itself, its `config` for example, say its widths.
        beside: the tower with what stands in its folder, as a tokenizer, in the place of the dense model's.
    """

    files: Callable[[Tower], Files]
    origin: Callable[[Mapping[str, Any], str | None], dict[str, str]]
    settle: Callable[[Tower], None] = lambda tower: None
    beside: Callable[[Tower, Path], Tower] = lambda tower, folder: tower


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
        native: how it says itself what a sliced tower is.
        check: raises UserError where it has no model of the settings' name, or no weights of that tag and no such file;
            before anything is built.
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
    native: Native
    check: Callable[[ModelSettings], None] = lambda settings: None
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


def known_weights(pretrained: str | None, frame: Frame) -> str | None:
    """The weights that a user names; None for `random`, but of a library whose models are folders, which has none."""
    return None if pretrained == RANDOM and not library(frame).folders else pretrained


def resizing(tower: Tower, blocks: str, widths: str | None = None, heads: str | None = None) -> list[str]:
    """Lines of Python that give the MLPs of a dense model other widths, and its attentions fewer heads.

    Args:
        blocks: Python of the model's blocks, first to last.
        widths, heads: Python of their widths, and of their numbers of heads; None: those of the tower.
    """
    slot = tower.slots[0]
    paths = {module: path for path, module in tower.visual.get_submodule(slot.name).named_modules()}
    rows = "2 * width" if slot.packed else "width"
    lines = [f"for block, width in zip({blocks}, {widths or tower.widths}, strict=True):"]
    for linear in slot.in_projections:
        lines.append(_layer(linear, paths[linear], f"block.{paths[linear]}.in_features", rows))
    if slot.norm is not None:
        norm = f"block.{paths[slot.norm]}"
        lines.append(f"    {norm} = type({norm})(width, eps={norm}.eps)")
    out = slot.out_projection
    lines.append(_layer(out, paths[out], "width", f"block.{paths[out]}.out_features"))
    if not tower.heads:
        return lines
    lines.append(f"for block, heads in zip({blocks}, {heads or tower.num_heads}, strict=True):")
    return [*lines, *_fewer_heads(tower.heads[0], paths[tower.heads[0].module])]


def _layer(module: Any, path: str, inputs: str, outputs: str) -> str:
    bias = "" if module.bias is not None else ", bias=False"
    return f"    block.{path} = nn.Linear({inputs}, {outputs}{bias})"


def _fewer_heads(slot: HeadSlot, attention: str) -> list[str]:
    """Within a loop over blocks and `heads`."""
    lines = [f"    block.{attention}.{key} = {of_head} * heads" for key, of_head in slot.numbers]
    for part in slot.parts:
        path = f"{attention}.{part.path}".removesuffix(".")
        module, own = slot.module.get_submodule(part.path), f"block.{path}.{part.key}"
        size = f"{part.groups * part.width} * heads"
        if isinstance(module, nn.Linear) and part.key == "weight":
            ends = (f"block.{path}.in_features", size) if part.dim == 0 else (size, f"block.{path}.out_features")
            lines.append(_layer(module, path, *ends))
        elif not isinstance(module, nn.Linear):
            cut = f"{own}[{':, ' * part.dim}: {size}]"
            is_parameter = isinstance(getattr(module, part.key), nn.Parameter)
            lines.append(f"    {own} = {f'nn.Parameter({cut})' if is_parameter else cut}")
    return lines


def or_heads(tower: Tower) -> str:
    """What a sentence says of the numbers of heads, after the widths."""
    return " or the numbers of heads" if tower.heads else ""


def path_of_blocks(tower: Tower) -> str:
    """Of the list of blocks, in the whole model."""
    prefix = next(path for path, module in tower.model.named_modules() if module is tower.visual)
    return f"{prefix}.{next(iter(tower.blocks)).rpartition('.')[0]}".removeprefix(".")


def same_shapes(one: Any, other: Any) -> bool:
    """Whether the tensors of two modules have the same names and shapes."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in own.state_dict().items()} for own in (one, other)]
    return shapes[0] == shapes[1]
