"""Published AMP checkpoints: the bare state dict of a pruned vision tower, in the names of the model's original code.

Read as towers, written from our folders. `original_names` has the names.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amp.errors import UserError, shortened, under
from amp.models.folder import prefix_of
from amp.models.original_names import from_original, read_widths, rename, strip_prefixes, to_original
from amp.run.files import atomic
from amp.run.sealed import write_tensors
from amp.towers import Tower, library, rebuild_dense
from amp.towers.weights import State, read_state, tell_loading


def _state_of(path: str | Path, base: Mapping[str, Any]) -> State:
    """The weights that the model's library takes of a checkpoint of several sets."""
    return read_state(path, library(base["frame"]).checkpoint_keys)


def is_published(path: str | Path, dense: Tower) -> bool:
    """Whether a file holds the vision tower alone of a model with more, or MLPs of other widths than `dense`.

    Args:
        dense: the dense model, on the meta device.
    """
    try:
        state = strip_prefixes(_state_of(path, dense.base))
    except UserError:
        return False  # The library says what is wrong with it.
    prefix = prefix_of(dense)
    if prefix and any(name.startswith(prefix) for name in state):
        return False  # A whole model; its text tower may have the names that a bare vision tower has.
    own = rename(state, dense)
    paths = {module: path for path, module in dense.visual.named_modules()}
    outs = [(slot, own.get(f"{paths[slot.out_projection]}.weight")) for slot in dense.slots]
    found = [(slot, tensor) for slot, tensor in outs if tensor is not None]
    return bool(found) and (bool(prefix) or any(tensor.shape[-1] != slot.hidden_width for slot, tensor in found))


def load_published(
    path: str | Path, base: Mapping[str, Any], rest: Mapping[str, Tensor] | None, device: str = "cpu"
) -> Tower:
    """The pruned model of a published checkpoint, frozen and in eval mode.

    Args:
        base: of the dense model's Tower.
        rest: tensors of the model outside its vision tower, as `outside_tower` gives them; None leaves them empty: the
            tower then has no `encode_text`.
    Raises:
        UserError: not the vision tower of that model.
    """
    tell_loading(str(path), Path(path))
    tower = rebuild_dense(base, device)
    state = _state_of(path, base)
    try:
        with under(path):
            own = from_original(state, tower)
            widths = read_widths(own, tower)
        for slot, width in zip(tower.slots, widths, strict=True):
            slot.keep(torch.arange(width))
        tower.visual.load_state_dict(own)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(path, f"not the vision tower of {base['name']} ({shortened(' '.join(lines[1:2]))})") from None
    if rest is None:
        tower.visual.to(device)
        return replace(tower, encode_text=None) if tower.model is not tower.visual else tower
    prefix = prefix_of(tower)
    tower.model.load_state_dict(
        dict(rest) | {prefix + name: tensor for name, tensor in tower.visual.state_dict().items()}
    )
    tower.model.to(device)
    return tower


def published_widths(path: str | Path, dense: Tower) -> list[int]:
    """Hidden width of every block of a published checkpoint of `dense`. Raises UserError."""
    return read_widths(from_original(_state_of(path, dense.base), dense), dense)


def outside_tower(dense: Tower) -> State:
    """The tensors of a model outside its vision tower: the text tower, and what both share."""
    prefix = prefix_of(dense)
    return {name: tensor for name, tensor in dense.model.state_dict().items() if not name.startswith(prefix)}


def write_published(tower: Tower, path: Path) -> None:
    """Writes the vision tower alone, in the names of the model's original code: safetensors, or else torch's format."""
    if tower.heads:
        text = "this format cannot record which attention heads were removed; give a model with all its heads"
        raise UserError(path, text)
    state = {name: tensor.detach().cpu().clone() for name, tensor in to_original(tower).items()}
    with atomic(path) as partial:
        if path.suffix == ".safetensors":
            write_tensors(partial, state)
        else:
            torch.save(state, partial)
