"""The comparison as a table and as a picture: mean and spread over the seeds."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from amp.report import save_figure, table

Cell = tuple[int, str, float]  # seed, row, size
METRICS = {"top1": "top-1", "recall1": "recall@1", "cosine": "cosine"}
NEARLY = 0.99  # of the dense model's top-1


def steps_to(curve: Sequence[tuple[int, float]], top1: float) -> int | None:
    """The first measured step from which on top-1 stays at or above `top1`; None where it does not end there."""
    reached = None
    for step, found in curve:
        reached = None if found < top1 else reached or step
    return reached


def tabulate(found: Mapping[Cell, Any], dense: Mapping[str, float]) -> str:
    """Markdown: a line for every size and row, in the order of `found`, and the dense model's atop.

    Args:
        found: `{params, pruned: {top1, recall1, cosine}, distilled: {...}, curve: [[step, top1], ...]}` of every cell.
        dense: `{top1, recall1, cosine}`.
    """
    headers = ["size", "row", *METRICS.values(), *(f"{name}, distilled" for name in METRICS.values()), "steps to 0.99"]
    lines = [["1", "dense", *(f"{dense[key]:.3f}" for key in METRICS), *["-"] * 4]]
    for size in _distinct(found, 2):
        for row in _distinct(found, 1):
            cells = [record for (_, own, at), record in found.items() if (own, at) == (row, size)]
            pruned = [_spread([cell["pruned"][key] for cell in cells]) for key in METRICS]
            distilled = [_spread([cell["distilled"][key] for cell in cells]) for key in METRICS]
            steps = [steps_to(cell["curve"], NEARLY * dense["top1"]) for cell in cells]
            share = statistics.fmean(cell["params"] for cell in cells)
            # A search may have no step near the size that was asked for.
            at = f"{size:g}" if abs(share - size) <= 0.01 * size else f"{size:g} ({share:.2f})"
            lines.append([at, row, *pruned, *distilled, _middle(steps)])
    return table(headers, lines)


def plot(found: Mapping[Cell, Any], dense: Mapping[str, float], path: Path) -> None:
    """Top-1 against parameters left, one line a row, bars for the spread: before training, and distilled."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained", sharey=True)
    colours = plt.get_cmap("tab20")
    for panel, title, stage in (
        (axes[0], "Before any training", "pruned"),
        (axes[1], "After the same short distillation", "distilled"),
    ):
        for index, row in enumerate(_distinct(found, 1)):
            points = []
            for size in _distinct(found, 2):
                cells = [record for (_, own, at), record in found.items() if (own, at) == (row, size)]
                values = [cell[stage]["top1"] for cell in cells]
                share = statistics.fmean(cell["params"] for cell in cells)
                points.append((100 * share, statistics.fmean(values), _deviation(values)))
            style = {"color": colours(index % 20), "linestyle": "-" if row.startswith("AMP") else "--"}
            panel.errorbar(*zip(*points, strict=True), marker="o", markersize=3.5, capsize=2, label=row, **style)
        panel.axhline(dense["top1"], color="black", linewidth=0.8, linestyle=":")
        panel.annotate("dense", (0, dense["top1"]), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
        panel.set(xlabel="parameters of the tower left (%)", title=title)
    axes[0].set(ylabel="zero-shot top-1", ylim=(0, 1.03))
    axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)


def _distinct(found: Mapping[Cell, Any], place: int) -> list[Any]:
    return list(dict.fromkeys(cell[place] for cell in found))


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {_deviation(values):.3f}"


def _middle(steps: Sequence[int | None]) -> str:
    """The median; rows that do not get there count as the slowest."""
    middle = sorted(steps, key=lambda step: (step is None, step))[len(steps) // 2]
    return "-" if middle is None else str(middle)
