"""The self-describing model folder: `model.safetensors` (the whole model) and `config.json` (what rebuilds it)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from amp.config import Frame, ModelSettings, Precision, Settings
from amp.errors import UserError
from amp.runs import atomic
from amp.towers import Tower, build_tower, default_frame, knows, rebuild_dense

FORMAT = 1


class FolderConfig(Settings):
    """`config.json`: the dense model, each block's kept neurons (indices into the dense one), provenance."""

    format: int
    base: dict[str, Any]
    widths: tuple[int, ...]
    kept: tuple[tuple[int, ...], ...]
    provenance: dict[str, Any]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, on the CPU, readable by whom the user's umask allows."""
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, path, dict(metadata or {}))
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def is_model_folder(path: str | None) -> bool:
    """Whether `path` is a folder that this module wrote, by its config.json."""
    config = Path(path or "") / "config.json"
    try:
        return path is not None and {"format", "base", "kept"} <= json.loads(config.read_text("utf-8")).keys()
    except (OSError, ValueError, AttributeError):
        return False


def save_tower(tower: Tower, kept: Sequence[Sequence[int]], provenance: Mapping[str, Any], folder: Path) -> None:
    """Writes the folder beside its final name and renames it; equal models give equal bytes.

    Args:
        tower: sliced so that block l has width len(kept[l]).
        kept: for each block, the kept neurons' indices into the dense model.
    """
    assert [len(indices) for indices in kept] == tower.widths
    config = FolderConfig(
        format=FORMAT,
        base=dict(tower.base),
        widths=tuple(tower.widths),
        kept=tuple(tuple(indices) for indices in kept),
        provenance=dict(provenance),
    )
    with atomic(folder) as partial:
        partial.mkdir()
        write_tensors(partial / "model.safetensors", tower.model.state_dict())
        (partial / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=1) + "\n", "utf-8")


def read_folder_config(folder: str | Path) -> FolderConfig:
    """Raises UserError when the folder is no pruned model of ours."""
    path = Path(folder) / "config.json"
    try:
        config = FolderConfig.model_validate_json(path.read_bytes())
    except OSError:
        raise UserError(f"{folder}: holds no config.json; expected a pruned/ or distilled/ folder") from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path}: {key or 'file'}: {problem['msg'].lower()}") from None
    if config.format != FORMAT:
        raise UserError(f"{path}: format {config.format}; this version reads format {FORMAT}")
    if list(config.widths) != [len(indices) for indices in config.kept]:
        raise UserError(f"{path}: widths: {list(config.widths)} are not the numbers of kept neurons")
    return config


def load_tower(folder: str | Path, device: str = "cpu", precision: Precision | None = None) -> Tower:
    """The pruned model of a folder, frozen and in eval mode. Runs no code from the files.

    Args:
        precision: of the weights; None keeps the one it was saved in.
    Raises:
        UserError: not such a folder, or one whose parts do not fit together.
    """
    config = read_folder_config(folder)
    base = config.base | ({"precision": precision} if precision else {})
    try:
        tower = rebuild_dense(base)
    except Exception as error:  # The library may raise anything when told to build nonsense.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}/config.json: base: does not describe a model ({reason})") from None
    if len(config.kept) != len(tower.slots):
        raise UserError(f"{folder}/config.json: kept: {len(config.kept)} blocks, the model has {len(tower.slots)}")
    for slot, indices in zip(tower.slots, config.kept, strict=True):
        if any(not 0 <= i < slot.hidden_width for i in indices) or len(set(indices)) != len(indices) or not indices:
            raise UserError(
                f"{folder}/config.json: kept: {slot.name}: indices must be distinct, 0-{slot.hidden_width - 1}"
            )
        slot.keep(torch.tensor(indices))
    weights = Path(folder) / "model.safetensors"
    try:
        tower.model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: cannot be read ({error})") from None
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(f"{weights}: does not fit its config.json ({' '.join(lines[1:2])})") from None
    tower.model.to(device)
    return tower


def open_tower(
    name: str | None,
    frame: Frame | None = None,
    pretrained: str | None = None,
    precision: Precision | None = None,
    device: str = "cpu",
) -> Tower:
    """A dense or a pruned model from what a user types: `--model NAME|JSON|FOLDER --pretrained TAG|FILE|FOLDER`.

    Raises:
        UserError: neither is known, or a folder does not belong to the model named beside it.
    """
    folder = next((p for p in (pretrained, name) if is_model_folder(p)), None)
    if folder is None:
        if name is None:
            raise UserError("--model: missing; give a model name, an open_clip model JSON or a pruned/ folder")
        candidates = [frame] if frame else get_args(Frame)
        if Path(name).is_dir() and frame != "hf" and not any(knows(candidate, name) for candidate in candidates):
            read_folder_config(name)
        frame = frame or default_frame(name, option="--model_type")
        settings = ModelSettings(frame=frame, name=name, pretrained=pretrained, precision=precision or "fp32")
        return build_tower(settings, device)
    if folder == name and pretrained not in (None, name):
        raise UserError(f"--pretrained: {pretrained}: {name} is a pruned model with weights of its own")
    tower = load_tower(folder, device, precision)
    if frame not in (None, tower.base["frame"]):
        raise UserError(f"--model_type: {frame}: {folder} is of {tower.base['frame']}")
    if folder == pretrained and name is not None and name != pretrained:
        dense = build_tower(ModelSettings(frame=tower.base["frame"], name=name), "meta")
        if not tower.same_architecture(dense):
            raise UserError(f"--pretrained: {folder} is a pruned {tower.base['name']!r}, not {name!r}")
    return tower


def load_pruned(folder: str | Path, device: str = "cpu") -> tuple[Any, Any, Any]:
    """A pruned model, ready to use: `model, transform, tokenizer = amp.load_pruned("out/pruned")`.

    Args:
        folder: a `pruned/` or `distilled/` folder.
        device: 'cpu' or 'cuda'.
    Returns:
        model: the library's own model (open_clip: `encode_image`, `encode_text`), eval mode, frozen.
        transform: PIL image -> (3, S, S) fp32, the evaluation transform.
        tokenizer: list of texts -> token ids, or None where the model has no text tower.
    Raises:
        UserError: not such a folder, or a damaged one.
    """
    tower = load_tower(folder, device)
    return tower.model, tower.transform, tower.make_tokenizer()
