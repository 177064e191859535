"""The comparison as a table and as a picture: mean and spread over the seeds."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amp.run.figures import BLUE, GREY, panels, save_figure
from amp.run.tables import table
from studies.compare_cells import FAILED, Cell

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

    Below it stands why a row has no numbers.

    Args:
        found: of every cell `{params, pruned: {top1, cosine, ...}}`; where it was distilled also `{distilled: {...},
            curve: [[step, top1], ...]}`; of one that failed `{failed: why}`.
        dense: `{top1, cosine, ...}`.
    """
    metrics = {key: METRICS[key] for key in dense}
    with_distilled = any("distilled" in cell for cell in found.values())
    after = [*(f"{name}, distilled" for name in metrics.values()), "steps to 0.99"] if with_distilled else []
    lines = [["dense", "1", *(f"{dense[key]:.3f}" for key in metrics), *["-"] * len(after)]]
    for size in _distinct(found, 2):
        for row in _distinct(found, 1):
            cells = _cells(found, row, size)
            pruned = [_spread([cell["pruned"][key] for cell in _having(cells, "pruned")]) for key in metrics]
            distilled = [_spread([cell["distilled"][key] for cell in _having(cells, "distilled")]) for key in metrics]
            steps = [steps_to(cell["curve"], NEARLY * dense["top1"]) for cell in _having(cells, "distilled")]
            own = [*distilled, _middle(steps)] if with_distilled else []
            lines.append([row, _at(size, cells), *pruned, *own])
    return "\n".join([table(["row", "size", *metrics.values(), *after], lines), *_reasons(found)])


def _at(size: float, cells: Sequence[Any]) -> str:
    """The size asked for, with what the towers have where a search or a library has no step near it."""
    shares = [cell["params"] for cell in _having(cells, "params")]
    share = statistics.fmean(shares or [size])
    return f"{size:g}" if abs(share - size) <= 0.01 * size else f"{size:g} ({share:.2f})"


def _reasons(found: Mapping[Cell, Any]) -> list[str]:
    """Why rows have no numbers, each once, with the sizes."""
    sizes: dict[tuple[str, str], list[str]] = {}
    for (_, row, size), cell in found.items():
        if FAILED in cell:
            own = sizes.setdefault((row, cell[FAILED]), [])
            own += [f"{size:g}"] if f"{size:g}" not in own else []
    lines = [f"- {row}, at {', '.join(own)}: {why}" for (row, why), own in sizes.items()]
    return ["", "Rows without numbers:", "", *lines] if lines else []


def plot(found: Mapping[Cell, Any], dense: Mapping[str, float], path: Path) -> None:
    """A panel a size, a line a row: top-1 before any training (hollow) and distilled (full), bars for the spread."""
    sizes, rows, seeds = _distinct(found, 2), _distinct(found, 1), _distinct(found, 0)
    figure, axes = panels(len(sizes), 3.4 + 2.9 * len(sizes), 1.8 + 0.28 * len(rows))
    bars = f"bars: one standard deviation over {len(seeds)} seeds; " if len(seeds) > 1 else ""
    title = f"Top-1 of pruned vision towers, each row at the same parameters ({bars}each panel has its own scale)"
    figure.suptitle(title)
    for panel, size in zip(axes, sizes, strict=True):
        for stage, colour, face in (("pruned", "#e08e2b", "white"), ("distilled", BLUE, BLUE)):
            cells = {place: _having(_cells(found, row, size), stage) for place, row in enumerate(rows)}
            values = {place: [cell[stage]["top1"] for cell in own] for place, own in cells.items() if own}
            if not values:
                continue
            panel.errorbar(
                [statistics.fmean(of_row) for of_row in values.values()],
                list(values),
                xerr=[_deviation(of_row) for of_row in values.values()],
                **{"fmt": "o", "color": colour, "markerfacecolor": face, "markersize": 5, "capsize": 2},
                label={"pruned": "before any training", "distilled": "distilled"}[stage],
            )
        panel.axvline(dense["top1"], color="black", linewidth=0.8, linestyle=":", label="dense")
        panel.set(title=f"{size:.0%} of the parameters", xlabel="top-1", yticks=range(len(rows)))
        panel.set_yticklabels(rows if panel is axes[0] else [])
        panel.grid(axis="y", color=GREY, linewidth=0.5)
        panel.set_axisbelow(True)
        panel.invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def _cells(found: Mapping[Cell, Any], row: str, size: float) -> list[Any]:
    """Of all seeds."""
    return [record for (_, own, at), record in found.items() if (own, at) == (row, size)]


def _having(cells: Sequence[Any], key: str) -> list[Any]:
    return [cell for cell in cells if key in cell]


def _distinct(found: Mapping[Cell, Any], place: int) -> list[Any]:
    return list(dict.fromkeys(cell[place] for cell in found))


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[0]:.3f}" if len(values) == 1 else f"{statistics.fmean(values):.3f} ± {_deviation(values):.3f}"


def _middle(steps: Sequence[int | None]) -> str:
    """The median; rows that do not get there count as the slowest."""
    if not steps:
        return "-"
    middle = sorted(steps, key=lambda step: (step is None, step))[len(steps) // 2]
    return "-" if middle is None else str(middle)
