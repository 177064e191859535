"""Models that tests share: a saved pruned one, and ways to damage it; and towers of shapes alone, each built once."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from amp.models.folder import save_tower
from amp.run.sealed import CHECKSUM, write_tensors
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

# A saved pruned model: widths of all kinds, and where it says it comes from.
WIDTHS = [8, 256, 31, 1, 100]
PROVENANCE = {"settings": {"prune": {"entropy_increase": 0.01}}, "note": "é"}


def meta_tower(settings: ModelSettings) -> Tower:
    """The tower of `settings` on the meta device; whoever asks for the same gets the same one."""
    return _build(settings.model_copy(update={"pretrained": None}).model_dump_json())


@cache
def _build(settings: str) -> Tower:
    return build_tower(ModelSettings.model_validate_json(settings), "meta")


def prune(tower: Tower) -> list[list[int]]:
    """Slices to widths of all kinds; neurons from anywhere."""
    generator = torch.Generator().manual_seed(0)
    kept = [torch.randperm(256, generator=generator)[:width].sort().values for width in WIDTHS]
    for slot, kept_K in zip(tower.slots, kept, strict=True):
        slot.keep(kept_K)
    return [kept_K.tolist() for kept_K in kept]


@pytest.fixture
def kept(tower: Tower) -> list[list[int]]:
    """The kept neurons of `tower`, which is sliced to WIDTHS."""
    return prune(tower)


@pytest.fixture
def folder(tower: Tower, kept: list[list[int]], tmp_path: Path) -> Path:
    """A saved pruned model."""
    path = tmp_path / "out" / "pruned"
    save_tower(tower, kept, PROVENANCE, path)
    return path


@pytest.fixture
def edit(folder: Path) -> Callable[..., None]:
    """edit(value, *keys) sets, edit(..., *keys) deletes, a value of the folder's config.json.

    Its checksum goes, as of a folder that an earlier version wrote.
    """

    def edit_config(value: Any, *keys: str) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        group = config
        for key in keys[:-1]:
            group = group[key]
        if value is ...:
            del group[keys[-1]]
        else:
            group[keys[-1]] = value
        config.pop(CHECKSUM, None)
        path.write_text(json.dumps(config))

    return edit_config


def random_clip(folder: Path, name: str, embed_dim: int = 32) -> tuple[str, str]:
    """A random open_clip model of one block: its JSON and its weights."""
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    config.write_text(json.dumps({"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}))
    torch.manual_seed(embed_dim)
    write_tensors(weights, build_tower(ModelSettings(name=str(config))).model.state_dict())
    return str(config), str(weights)
