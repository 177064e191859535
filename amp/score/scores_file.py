"""`scores.safetensors`: one score a neuron, and the settings they were made with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from amp.errors import UserError
from amp.models.folder import write_tensors
from amp.run.files import atomic
from amp.run.identity import first_difference, read_header

FOREIGN = "not a scores file of main_score.py"


def save_scores(scores: Sequence[Tensor], header: Mapping[str, Any], path: Path) -> None:
    """`score.{block}` fp32 (H,) for every block, and a JSON header of settings."""
    with atomic(path) as partial:
        tensors = {f"score.{block}": score_H for block, score_H in enumerate(scores)}
        write_tensors(partial, tensors, {"amp": json.dumps(header)})


def load_scores(path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    """(H,) fp32 scores by block, on the CPU, and their header. Raises UserError when the file holds none."""
    if not path.exists():
        raise UserError(path, "no such file; run main_score.py with the same --config_file first")
    header, tensors = read_header(path, FOREIGN), load_file(path)
    missing = next((name for block in range(len(tensors)) if (name := f"score.{block}") not in tensors), None)
    if missing:
        raise UserError(path, f"holds no {missing}; {FOREIGN}")
    return [tensors[f"score.{block}"] for block in range(len(tensors))], header


def check_scores(scored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError naming what differs when scores were made for another model, data or criterion.

    Args:
        scored, wanted: headers or identities of runs; only what decides the scores is compared.
    """
    decisive = {key: wanted["settings"][key] for key in ("model", "data", "score")}
    difference = first_difference(scored, {**wanted, "settings": decisive})
    if difference:
        key, old, new = difference
        raise UserError(
            "scores.safetensors",
            f"made with {key} = {old!r}, asked for {new!r}; "
            "run main_score.py with these settings, into another output.dir",
        )
