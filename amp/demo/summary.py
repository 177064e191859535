"""The closing picture of the demo."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from amp.pruning.report import draw_errors, draw_probes, draw_widths
from amp.run.figures import BLUE, ORANGE, panels, save_figure
from amp.run.tables import human


def plot_summary(record: Mapping[str, Any], rows: Mapping[str, Mapping[str, float]], folder: Path) -> None:
    """`summary.png`: widths per block, what the search or the refit measured, and the quality of every model.

    Args:
        record: of `prune.json`.
        rows: {model: {params, top1, recall1}}, qualities as fractions.
        folder: where the picture is written.
    """
    figure, axes = panels(3, 17, 4.4)
    draw_widths(axes[0], record)
    if record["probes"]:
        draw_probes(axes[1], record)
    else:
        draw_errors(axes[1], record["compensation"])
    for offset, key, label, colour in ((-0.2, "top1", "top-1", BLUE), (0.2, "recall1", "recall@1", ORANGE)):
        places = [position + offset for position in range(len(rows))]
        bars = axes[2].bar(places, [row[key] for row in rows.values()], 0.38, color=colour, label=label)
        axes[2].bar_label(bars, fmt="{:.3f}", fontsize=8, padding=2)
    names = [f"{fill(name, 16)}\n{human(row['params'])}" for name, row in rows.items()]
    axes[2].set_xticks(range(len(rows)), names, fontsize=8)
    axes[2].set(ylim=(0, 1.08), ylabel="accuracy, recall", xlabel="model and parameters of its vision tower")
    axes[2].set_title("Accuracy on unseen digits", pad=22)
    axes[2].legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 0.99), borderaxespad=0)
    figure.suptitle("Demo: a small CLIP on digit scenes, with a pruned vision tower")
    save_figure(figure, folder / "summary.png")
