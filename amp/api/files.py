"""`amp.save` and `amp.load_pruned`: pruned models to folders and back."""

from pathlib import Path
from typing import Any

from amp.api.objects import Known, known_of, remember
from amp.api.pruned import PrunedModel
from amp.errors import UserError
from amp.models.folder import load_tower, read_folder_config, save_tower


def save(pruned: Any, folder: str | Path) -> Path:
    """Writes a pruned model to a folder that `amp.load_pruned`, and the library of the model, can load.

    Args:
        pruned: what `amp.prune` gave, or a model of it or of `amp.load_pruned`, trained or not.
        folder: is made; one that is there is replaced.
    Raises:
        UserError: another object, or a model that no name rebuilds.
    """
    known = known_of(pruned.model if isinstance(pruned, PrunedModel) else pruned, "amp.save")
    base = known.tower.base
    if base.get("model_config") is None:
        raise UserError(
            "amp.save",
            f"nothing says how to build this {base['name']} again: prune it with model={{'name': ..., 'kwargs': ...}}, "
            "as its library built it; or save the object itself with torch.save",
        )
    place = Path(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    save_tower(known.tower, known.kept, known.provenance, place)
    return place


def load_pruned(folder: str | Path, device: str = "cpu", trainable: bool = True) -> tuple[Any, Any, Any]:
    """A pruned model, ready to use: `model, transform, tokenizer = amp.load_pruned("out/pruned")`.

    Args:
        folder: a `pruned/` or `distilled/` folder.
        device: 'cpu' or 'cuda'.
        trainable: whether the parameters take gradients.
    Returns:
        model: the library's own model (open_clip: `encode_image`, `encode_text`), in eval mode.
        transform: PIL image -> (3, S, S) fp32, the evaluation transform.
        tokenizer: list of texts -> token ids, or None where the model has no text tower.
    Raises:
        UserError: not such a folder, or a damaged one.
    """
    tower, config = load_tower(folder, device), read_folder_config(folder)
    tower.model.requires_grad_(trainable)
    remember(tower.model, Known(tower, config.kept, config.provenance, {}))
    return tower.model, tower.transform, tower.make_tokenizer()
