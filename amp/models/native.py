"""What a pruned model's folder holds for those who do not have this project: its library's own files, and a card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amp.models.card import CARD, card, is_edited
from amp.run.console import say
from amp.towers import Tower, library
from amp.towers.library import Files


def settle(tower: Tower) -> None:
    """Makes what a sliced model says of itself say its widths, so that its library's own way to save it is right.

    transformers: `model.config` says one width of all blocks in the family's own words, others as `mlp_widths`. timm:
    the arguments of the factory that it remembers. open_clip's models say nothing of themselves.
    """
    library(tower.base["frame"]).native.settle(tower)


def with_what_stands_beside(tower: Tower, folder: Path) -> Tower:
    """A loaded tower whose tokenizer is the one in its folder, where one is there."""
    return library(tower.base["frame"]).native.beside(tower, folder)


def native_files(tower: Tower) -> Files:
    """Of a settled tower."""
    return library(tower.base["frame"]).native.files(tower)


def write_beside(
    files: Files,
    tower: Tower,
    provenance: Mapping[str, Any],
    place: Path,
    before: Path,
    measured: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> None:
    """Writes what stands beside weights and description: the library's files and the card.

    Args:
        files: of the tower.
        place: the folder to write into.
        before: the folder that it will replace; a card in it that somebody edited stays.
        measured: as `amp.models.card.card`; so is `command`.
    """
    for name, value in files.json.items():
        if files.alone or name != "config.json":
            (place / name).write_text(
                json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8"
            )
    for name, text in files.texts.items():
        (place / name).write_text(text, encoding="utf-8")
    for path in files.copied:
        shutil.copyfile(path, place / path.name)
    if is_edited(before / CARD):
        say(f"note: {before / CARD} was edited by hand and is kept")
        shutil.copyfile(before / CARD, place / CARD)
    else:
        (place / CARD).write_text(card(tower, files, provenance, measured, command), encoding="utf-8")


def names_of(files: Files) -> tuple[str, ...]:
    """What `write_beside` writes for the library."""
    own = {*files.json, *files.texts, *(path.name for path in files.copied)}
    return tuple(sorted(own - {"config.json"}))
