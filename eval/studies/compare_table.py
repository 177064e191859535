"""The comparison as a table and as a picture: mean and spread over the seeds."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amp.run.figures import BLUE, GREY, panels, save_figure
from amp.run.tables import table
from studies.compare_cells import Cell

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
    headers = ["row", "size", *METRICS.values(), *(f"{name}, distilled" for name in METRICS.values()), "steps to 0.99"]
    lines = [["dense", "1", *(f"{dense[key]:.3f}" for key in METRICS), *["-"] * 4]]
    for size in _distinct(found, 2):
        for row in _distinct(found, 1):
            cells = _cells(found, row, size)
            pruned = [_spread([cell["pruned"][key] for cell in cells]) for key in METRICS]
            distilled = [_spread([cell["distilled"][key] for cell in cells]) for key in METRICS]
            steps = [steps_to(cell["curve"], NEARLY * dense["top1"]) for cell in cells]
            share = statistics.fmean(cell["params"] for cell in cells)
            # A search may have no step near the size that was asked for.
            at = f"{size:g}" if abs(share - size) <= 0.01 * size else f"{size:g} ({share:.2f})"
            lines.append([row, at, *pruned, *distilled, _middle(steps)])
    return table(headers, lines)


def plot(found: Mapping[Cell, Any], dense: Mapping[str, float], path: Path) -> None:
    """A panel a size, a line a row: top-1 before any training (hollow) and distilled (full), bars for the spread."""
    sizes, rows = _distinct(found, 2), _distinct(found, 1)
    figure, axes = panels(len(sizes), 3.4 + 2.9 * len(sizes), 1.4 + 0.28 * len(rows))
    for panel, size in zip(axes, sizes, strict=True):
        for stage, colour, face in (("pruned", "#e08e2b", "white"), ("distilled", BLUE, BLUE)):
            values = [[cell[stage]["top1"] for cell in _cells(found, row, size)] for row in rows]
            panel.errorbar(
                [statistics.fmean(of_row) for of_row in values],
                range(len(rows)),
                xerr=[_deviation(of_row) for of_row in values],
                **{"fmt": "o", "color": colour, "markerfacecolor": face, "markersize": 5, "capsize": 2},
                label={"pruned": "before any training", "distilled": "distilled"}[stage],
            )
        panel.axvline(dense["top1"], color="black", linewidth=0.8, linestyle=":", label="dense")
        panel.set(title=f"{size:.0%} of the parameters", xlabel="zero-shot top-1", yticks=range(len(rows)))
        panel.set_yticklabels(rows if panel is axes[0] else [])
        panel.grid(axis="y", color=GREY, linewidth=0.5)
        panel.set_axisbelow(True)
        panel.invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def _cells(found: Mapping[Cell, Any], row: str, size: float) -> list[Any]:
    """Of all seeds."""
    return [record for (_, own, at), record in found.items() if (own, at) == (row, size)]


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
