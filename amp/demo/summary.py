"""The closing picture of the demo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amp.pruning.report import draw_probes, draw_widths
from amp.run.figures import BLUE, panels, save_figure
from amp.run.tables import human


def plot_summary(record: Mapping[str, Any], rows: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """`summary.png`: widths per block, entropy per probed width, and the quality of every model.

    Args:
        record: of `prune.json`, with `dense_widths`.
        rows: {model: {params, top1, recall1}}, qualities as fractions.
    """
    figure, axes = panels(3, 16, 4.2)
    draw_widths(axes[0], record["widths"], record["dense_widths"])
    draw_probes(axes[1], record["probes"], record["dense_widths"])
    for offset, key, label, colour in ((-0.2, "top1", "top-1", BLUE), (0.2, "recall1", "recall@1", "#e08e2b")):
        places = [position + offset for position in range(len(rows))]
        bars = axes[2].bar(places, [row[key] for row in rows.values()], 0.38, color=colour, label=label)
        axes[2].bar_label(bars, fmt="{:.3f}", fontsize=8, padding=2)
    names = [f"{name.replace('_', ' ')}\n{human(row['params'])}" for name, row in rows.items()]
    axes[2].set_xticks(range(len(rows)), names, fontsize=8)
    axes[2].set(ylim=(0, 1.2), ylabel="on unseen digits", title="Quality, and parameters of the tower")
    axes[2].legend(frameon=False, ncols=2, loc="upper left")
    save_figure(figure, path)
