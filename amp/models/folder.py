"""The self-describing model folder: `model.safetensors` (the whole model) and `config.json` (what rebuilds it).

What its library reads stands there too, and a model card (`amp.models.native`). Where `config.json` must be the
library's alone, our description is `amp.json`; `amp.run.sealed.description_of` tells.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from amp.errors import UserError, shortened
from amp.models.native import names_of, native_files, settle, with_what_stands_beside, write_beside
from amp.run.files import BESIDE, CONFIG, MODEL, atomic, begin_sha256, file_sha256
from amp.run.options import check_model_folder
from amp.run.sealed import (
    WEIGHTS_DIGEST,
    check_digest,
    description_of,
    read_json,
    write_json,
    write_tensors,
)
from amp.settings.base import MOST_SIDE, Positive, Precision, Settings, Side
from amp.settings.model import Frame, TransformSettings
from amp.towers import Tower, in_order, rebuild_dense, with_heads
from amp.towers.weights import tell_loading

FORMAT = 1


class Images(Settings):
    """`preprocess` of a base: what every library says of its images; what it says besides is its own."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    size: Side | tuple[Side, Side]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest", "box", "hamming", "random"]
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    resize: Annotated[int, Field(ge=1, le=10 * MOST_SIDE)] | None = None


class Base(Settings):
    """`base` of a folder: what rebuilds the dense model."""

    frame: Frame
    name: str
    kwargs: dict[str, Any]
    precision: Precision
    transform: TransformSettings
    described: dict[str, Any] | str = Field(alias="model_config")
    variant: str | None = None
    preprocess: Images


class FolderConfig(Settings):
    """The description: the dense model, each block's width and kept neurons, provenance.

    `kept` are indices into the dense model; null where they are not known, as of a published checkpoint. `heads` are
    the attention heads kept of every block, by their places in the dense model; missing where none may go. `files` are
    written beside it for the library, and `library_keys` of this file are the library's. `weights_sha256` is the
    digest of `model.safetensors`.
    """

    format: int
    base: dict[str, Any]
    widths: tuple[int, ...]
    kept: tuple[tuple[int, ...], ...] | None
    heads: tuple[tuple[int, ...], ...] | None = None
    provenance: dict[str, Any]
    files: tuple[str, ...] = ()
    library_keys: tuple[str, ...] = ()
    weights_sha256: str | None = None

    @property
    def counts(self) -> list[int]:
        """As of `Tower.counts`."""
        return in_order(self.widths, [len(indices) for indices in self.heads or ()])

    @field_validator("base")
    @classmethod
    def _describes_a_model(cls, base: dict[str, Any]) -> dict[str, Any]:
        Base.model_validate_json(json.dumps(base))
        return base


def check_readable(path: str | None) -> None:
    """Raises UserError where `path` is a folder whose description is damaged, so that nobody can tell whose it is."""
    if path is not None and (config := description_of(Path(path))).is_file():
        read_json(config)


def is_model_folder(path: str | None) -> bool:
    """Whether `path` is a folder that this module wrote, by its description."""
    try:
        own = json.loads(description_of(Path(path or "")).read_text("utf-8"))
        return path is not None and {"format", "base", "kept"} <= own.keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def save_tower(
    tower: Tower,
    kept: Sequence[Sequence[int]] | None,
    provenance: Mapping[str, Any],
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    measured: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> None:
    """Writes the folder beside its final name and renames it; equal models give equal bytes.

    What somebody put into a folder of that name stays there, and so does a model card that was edited.

    Args:
        tower: sliced so that block l has width len(kept[l]).
        kept: for each block, the kept neurons' indices into the dense model; None where they are not known.
        weights: of the vision tower by their names in it, in the place of its own, which may be shards.
        measured: a quality's name -> its value, for the card: `{"top-1 on ImageNet-1k": "79.3 %"}`.
        command: that made the folder, for the card.
    """
    assert kept is None or [len(indices) for indices in kept] == tower.widths
    settle(tower)
    files = native_files(tower)
    beside = {} if files.alone else dict(files.json.get("config.json", {}))
    config = FolderConfig(
        format=FORMAT,
        base=dict(tower.base),
        widths=tuple(tower.widths),
        kept=None if kept is None else tuple(tuple(indices) for indices in kept),
        heads=tuple(tuple(slot.held) for slot in tower.heads) or None,
        provenance=dict(provenance),
        files=names_of(files),
        library_keys=tuple(beside),
    )
    stale = _written_before(folder) - {*config.files}
    with atomic(folder) as partial:
        partial.mkdir()
        own = {prefix_of(tower) + name: tensor for name, tensor in (weights or {}).items()}
        write_tensors(partial / MODEL, tower.model.state_dict() | own)
        digest = {WEIGHTS_DIGEST: file_sha256(str(partial / MODEL))}
        name = BESIDE if files.alone else CONFIG
        own_keys = config.model_dump(mode="json", exclude=None if tower.heads else {"heads"})
        write_json(partial / name, own_keys | digest | beside)
        write_beside(files, tower, provenance, partial, folder, measured, command)
    for name in stale:
        (folder / name).unlink(missing_ok=True)


def _written_before(folder: Path) -> set[str]:
    """What an earlier save wrote for the library."""
    try:
        return {*read_folder_config(folder).files}
    except UserError:
        return set()


def prefix_of(tower: Tower) -> str:
    """Where the vision tower stands in its model, with a dot; empty where it is the model."""
    path = next(path for path, module in tower.model.named_modules() if module is tower.visual)
    return f"{path}." if path else ""


def read_folder_config(folder: str | Path) -> FolderConfig:
    """Raises UserError when the folder is no pruned model of ours."""
    check_model_folder(folder)
    path = description_of(Path(folder))
    values = read_json(path)
    if not {"format", "base"} & values.keys():
        raise UserError(path, "does not describe a pruned model; load a folder of save_pretrained with its own library")
    theirs = values.get("library_keys")
    for key in theirs if isinstance(theirs, list) else ():
        if key not in FolderConfig.model_fields:
            values.pop(key, None)
    try:
        config = FolderConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise UserError(path, f"{key or 'file'}: {problem['msg'].lower()}") from None
    if config.format != FORMAT:
        raise UserError(path, f"format {config.format}; this version reads format {FORMAT}")
    if config.kept is not None and list(config.widths) != [len(indices) for indices in config.kept]:
        raise UserError(path, f"widths: {list(config.widths)} do not match the numbers of kept neurons")
    return config


def load_tower(
    folder: str | Path, device: str = "cpu", precision: Precision | None = None, config: FolderConfig | None = None
) -> Tower:
    """The pruned model of a folder, frozen and in eval mode. Runs no code from the files.

    Args:
        device: 'cpu', 'cuda' or 'meta' (shapes only, no weights are read).
        precision: of the weights; None keeps the one it was saved in.
        config: of the folder, where it was read before.
    Raises:
        UserError: not such a folder, or one whose parts do not fit together.
    """
    config = config or read_folder_config(folder)
    base = config.base | ({"precision": precision} if precision else {})
    weights = Path(folder) / MODEL
    if device != "meta":
        tell_loading(str(folder), weights)
        if config.weights_sha256 is not None:
            begin_sha256(weights)
    try:
        tower = rebuild_dense(base, device)
        tower = tower if config.heads is None else with_heads(tower)
    except Exception as error:  # The library may raise anything when told to build nonsense.
        reason = shortened(error)
        raise UserError(description_of(Path(folder)), f"base: does not describe a model ({reason})") from None
    for slot, indices in zip(tower.units, _kept(config, tower, folder), strict=True):
        slot.keep(torch.tensor(indices))
    if device != "meta":
        _load(tower, weights, config.weights_sha256, description_of(Path(folder)).name)
    settle(tower)
    tower.model.to(device)
    return with_what_stands_beside(tower, Path(folder))


def _load(tower: Tower, weights: Path, recorded: str | None, description: str) -> None:
    """A damaged file is told as such before what it does not fit."""
    try:
        tower.model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError) as error:
        check_digest(weights, recorded)
        raise UserError(weights, f"cannot be read ({error})") from None
    except RuntimeError as error:
        check_digest(weights, recorded)
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(weights, f"does not fit its {description} ({' '.join(lines[1:2])})") from None
    check_digest(weights, recorded)


def _kept(config: FolderConfig, dense: Tower, folder: str | Path) -> list[Sequence[int]]:
    """Units to keep of every slot: where neurons are not known, as many as the block is wide."""
    where = f"{description_of(Path(folder))}: " + ("widths" if config.kept is None else "kept")
    if len(config.widths) != len(dense.slots):
        raise UserError(where, f"{len(config.widths)} blocks, but the model has {len(dense.slots)}")
    if config.heads is not None and len(config.heads) != len(dense.heads):
        told = f"{len(config.heads)} blocks, but the model has {len(dense.heads)}"
        raise UserError(f"{description_of(Path(folder))}: heads", told)
    neurons = [*(map(range, config.widths) if config.kept is None else config.kept)]
    kept: list[Sequence[int]] = in_order(neurons, config.heads or ())
    for slot, indices in zip(dense.units, kept, strict=True):
        if any(not 0 <= i < slot.num_units for i in indices) or len(set(indices)) != len(indices) or not indices:
            raise UserError(where, f"{slot.name}: indices must be distinct, 0-{slot.num_units - 1}")
    return kept
