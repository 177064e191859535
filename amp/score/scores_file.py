"""`scores.safetensors`: one score a neuron, and the settings they were made with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from amp.errors import UserError
from amp.models.folder import write_tensors
from amp.run.files import atomic
from amp.run.identity import first_difference


def save_scores(scores: Sequence[Tensor], header: Mapping[str, Any], path: Path) -> None:
    """`score.{block}` fp32 (H,) for every block, and a JSON header of settings."""
    with atomic(path) as partial:
        tensors = {f"score.{block}": score_H for block, score_H in enumerate(scores)}
        write_tensors(partial, tensors, {"amp": json.dumps(header)})


def load_scores(path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    """Scores by block, and their header. Raises UserError when the file holds none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(json.loads((file.metadata() or {})["amp"]))
            scores = [file.get_tensor(f"score.{block}") for block in range(len(file.keys()))]
    except FileNotFoundError:
        raise UserError(path, "no such file; run main_score.py with the same --config_file first") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(path, f"not a scores file of main_score.py ({error})") from None
    return scores, header


def check_scores(scored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError naming what differs when scores were made for another model, data or criterion.

    Args:
        scored, wanted: headers as `amp.runs.describe` makes them; only what decides the scores is compared.
    """
    keys = ("model", "data", "score")
    trimmed = {**wanted, "settings": {key: wanted["settings"][key] for key in keys}}
    difference = first_difference(scored, trimmed)
    if difference:
        key, old, new = difference
        raise UserError(
            "scores.safetensors",
            f"made with {key} = {old!r}, asked for {new!r}; "
            "run main_score.py with these settings, into another output.dir",
        )
