"""`amp.save` and `amp.load_pruned`: pruned models to folders and back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amp.api.objects import Known, known_of, remember
from amp.api.pruned import HOW, object_of
from amp.errors import UserError, as_line, shortened
from amp.models.folder import is_model_folder, load_tower, read_folder_config, save_tower
from amp.models.throughput import rebuild
from amp.towers import Tower

ELSE = "or save the object itself with torch.save"


def save(pruned: Any, folder: str | Path) -> Path:
    """Writes a pruned model to a folder that `amp.load_pruned` and the model's own library can load.

    Args:
        pruned: the result of `amp.prune`, its model, or a model that `amp.load_pruned` returned; it may have been
            trained since.
        folder: the folder to create. A pruned model that is already there is replaced.

    Returns:
        the absolute path of the folder.

    Raises:
        UserError: the object is not a pruned model, nothing tells how to build it again, or the folder holds other
            files.
    """
    known = known_of(object_of(pruned), "amp.save")
    tower, place = _as_it_is(known.tower), _place_of(folder)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        save_tower(tower, known.kept, known.provenance, place)
    except OSError as error:
        raise as_line(error, place) or error from None
    return place


def _place_of(folder: Any) -> Path:
    """Raises UserError for what is no folder of a pruned model, and not free."""
    if not isinstance(folder, (str, Path)) or not str(folder).strip():
        raise UserError("amp.save", f"{folder!r} is not a folder")
    place = Path(folder).expanduser().absolute()
    if place.is_dir() and any(place.iterdir()) and not is_model_folder(str(place)):
        raise UserError("amp.save", f"{folder} holds files other than a pruned model; give another folder")
    if place.exists() and not place.is_dir():
        raise UserError("amp.save", f"{folder} is a file; give another path")
    if not place.name:
        raise UserError("amp.save", f"{folder} cannot be replaced; give a folder inside it")
    return place


def _as_it_is(tower: Tower) -> Tower:
    """The tower with what rebuilds it, another number of classes among it. Raises UserError where nothing does."""
    if tower.base.get("model_config") is None:
        raise UserError("amp.save", f"it is unknown how this {tower.base['name']} was built; {HOW}; {ELSE}")
    difference = _difference(tower)
    classes = getattr(tower.model, "num_classes", None)
    if difference and isinstance(classes, int):
        other = replace(tower, base={**tower.base, "kwargs": {**tower.base["kwargs"], "num_classes": classes}})
        if _difference(other) is None:
            return other
    if difference:
        raise UserError("amp.save", f"the model was changed after pruning: {difference}; undo the change, {ELSE}")
    return tower


def _difference(tower: Tower) -> str | None:
    """In what a model differs from the one that its description builds; None where it does not."""
    try:
        twin = rebuild(tower.base, "meta", tower.counts)
    except UserError as error:
        return str(error)
    theirs, own = ({name: [*t.shape] for name, t in one.model.state_dict().items()} for one in (twin, tower))
    name = next((name for name in {**own, **theirs} if own.get(name) != theirs.get(name)), None)
    return name and f"{name} has the shape {own.get(name, 'missing')}, expected {theirs.get(name, 'no such tensor')}"


def load_pruned(folder: str | Path, device: str = "cpu", trainable: bool = True) -> tuple[Any, Any, Any]:
    """Loads a pruned model, ready to use: `model, transform, tokenizer = amp.load_pruned("out/pruned")`.

    Args:
        folder: a `pruned/` or `distilled/` folder.
        device: 'cpu' or 'cuda'.
        trainable: whether the parameters require gradients.

    Returns:
        model: an instance of the library's own class (open_clip: with `encode_image`, `encode_text`), in eval mode.
        transform: the evaluation transform, PIL image -> (3, S, S) fp32.
        tokenizer: list of texts -> token ids; None if the model has no text tower.

    Raises:
        UserError: the folder is not a pruned model, or is damaged.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError("device", f"{device!r} is not available on this machine ({shortened(error)})") from None
    config = read_folder_config(folder)
    tower = load_tower(folder, device, config=config)
    tower.model.requires_grad_(trainable)
    remember(tower.model, Known(tower, config.kept, config.provenance, {}))
    return tower.model, tower.transform, tower.make_tokenizer()
