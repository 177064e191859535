"""`scores.safetensors`: one score a neuron, and the settings they were made with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amp.errors import UserError
from amp.run.console import called, say
from amp.run.files import HEAD_SCORES, SCORES, atomic, room_for
from amp.run.identity import first_difference, in_words
from amp.run.options import check_scored
from amp.run.run import Run
from amp.run.sealed import read_tensors, write_tensors
from amp.settings.prune import PruneConfig
from amp.towers import Tower, in_order, with_attention
from amp.towers.mlps import slots

FOREIGN = "not a file of scores that main_score.py wrote"


def save_scores(scores: Sequence[Tensor], header: Mapping[str, Any], path: Path) -> None:
    """`score.{block}` fp32 (H,) for every block, and a JSON header of settings. Raises StoppedError on a full disk."""
    tensors = {f"score.{block}": score_H for block, score_H in enumerate(scores)}
    with room_for(path), atomic(path) as partial:
        write_tensors(partial, tensors, header)


def load_scores(path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    """(H,) fp32 scores by block, on the CPU, and their header.

    Raises:
        UserError: the file holds none, it is damaged, or a score is no finite number.
    """
    check_scored(path)
    header, tensors = read_tensors(path, FOREIGN)
    names = [f"score.{block}" for block in range(len(tensors))]
    for name in names:
        score_H = tensors.get(name)
        if score_H is None:
            raise UserError(path, f"holds no {name}; {FOREIGN}")
        if score_H.ndim != 1 or score_H.dtype != torch.float32 or not torch.isfinite(score_H).all():
            raise UserError(path, f"{name}: is not a list of finite fp32 numbers; delete the file to score again")
    if not names:
        raise UserError(path, f"holds no score.0; {FOREIGN}")
    return [tensors[name] for name in names], header


def with_scored_heads(
    run: Run[PruneConfig], tower: Tower, scores: list[Tensor], told: bool = False
) -> tuple[Tower, list[Tensor]]:
    """The tower with what `prune.attention` lets be removed, and the scores of all its units, (U,) fp32 on the CPU.

    Where heads go wherever they can (`auto`), and the scoring has none of heads, they stay, and a line says so.

    Args:
        scores: of the neurons, by block.
        told: whether it was said before why the heads stay.
    Raises:
        UserError: heads are asked for and cannot go, or their scores are missing, or of another run or tower.
    """
    attention, path = run.config.attention, Path(run.config.output.dir, HEAD_SCORES)
    able = with_attention(tower, attention, told)
    if not able.heads:
        return able, scores
    if not path.exists():
        if attention != "auto":
            raise UserError(path, f"no such file; run {_score()} with the same settings first")
        why = f"{path} is missing; {_score()} with these settings adds it"
        say(f"note: no attention heads are removed, only neurons: {why}")
        return tower, scores
    own, header = load_scores(path)
    check_scores(header, run.header, path)
    check_fit(own, able, path)
    return able, in_order(scores, own)


def check_fit(scores: Sequence[Tensor], tower: Tower, path: Path) -> None:
    """Raises UserError unless the file's scores are one for every neuron of every block of a dense tower; of a file of
    heads' scores, one for every head."""
    try:
        slots.check_scores(tower.heads if path.name == HEAD_SCORES else tower.slots, scores)
    except UserError as error:
        raise UserError(path, f"scores {error.text}; delete it to score again") from None


def check_scores(scored: Mapping[str, Any], wanted: Mapping[str, Any], path: Path = Path(SCORES)) -> None:
    """Raises UserError naming what differs when scores were made for another model, data or criterion.

    Args:
        scored, wanted: headers or identities of runs; only what decides the scores is compared.
    """
    decisive = {key: wanted["settings"][key] for key in ("model", "data", "score")}
    difference = first_difference(scored, {**wanted, "settings": decisive})
    if difference:
        raise UserError(
            path,
            f"made {in_words(*difference)}; run {_score()} with these settings in another folder",
        )


def _score() -> str:
    return called("score")
