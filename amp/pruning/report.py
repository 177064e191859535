"""What a pruning writes and says: prune.json, prune.png and pruned/, tables and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from amp.models.folder import save_tower
from amp.pruning.doubt import warn_of_doubt
from amp.pruning.refit import CALIBRATION
from amp.pruning.widths import Pruned
from amp.run.console import detail, reproduce, say
from amp.run.figures import BLUE, GREY, ORANGE, panels, save_figure
from amp.run.files import PRUNE_RECORD
from amp.run.run import Run
from amp.run.tables import human, table
from amp.run.world import world
from amp.settings.prune import PruneConfig
from amp.statistics.saved_sums import forget_sums
from amp.towers import Tower

LETTERS = 56  # of a heading, above each panel


def write_pruning(run: Run[PruneConfig], tower: Tower, pruned: Pruned, cost: Mapping[str, float]) -> None:
    """Writes prune.png, pruned/ and, as the sign that all is there, prune.json.

    Args:
        tower: sliced.
        cost: `{block_forwards, images, seconds}`.
    """
    record = {**pruned.record, "cost": dict(cost)}
    if pruned.errors:
        say(describe_errors(pruned.errors))
    if world().is_main:
        save_figure(draw_pruning({**record, **run.header}), run.path("prune.png"))
        save_tower(tower, pruned.kept, run.header, run.path("pruned"), command=reproduce("main_prune.py"))
    run.write(PRUNE_RECORD, record, "main_prune.py")
    world().from_main(lambda: forget_sums(run.path(CALIBRATION)))
    say(describe_sizes(record["params"], record["flops"]))
    if pruned.found:
        warn_of_doubt(pruned.found, pruned.dense_widths, pruned.num_batches, run.config.data)
    if pruned.found and pruned.final_entropy < pruned.dense_entropy:
        say(
            "note: the entropy fell, which the published criterion accepts; compare the features before you use "
            "this model"
        )
    say(describe_kept("hidden neurons", tower.widths, pruned.dense_widths))
    tell = say if pruned.found else detail  # what a search goes by
    tell(f"entropy of held-out features: {pruned.dense_entropy:.4f} dense, {pruned.final_entropy:.4f} pruned (nats)")
    if pruned.heads:
        say(describe_kept("attention heads", pruned.heads, pruned.dense_heads))
    say(describe_features(record))
    say(f"wrote {run.folder}/prune.json, prune.png and pruned/ in {cost['seconds']:.0f} s")


def describe_kept(what: str, kept: Sequence[int], dense: Sequence[int]) -> str:
    """One line: how many of these units every block keeps, of how many."""
    return f"{what} kept in each block: {list(kept)} of {' or '.join(map(str, sorted(set(dense))))}"


def describe_errors(errors: Sequence[Mapping[str, float]]) -> str:
    """One line: what compensation did to the MLPs' outputs, all blocks alike."""
    means = [sum(error[key] for error in errors) / len(errors) for key in ("without", "with")]
    return f"refit: mean error of the MLP outputs {means[0]:.1%} of their variance before, {means[1]:.1%} after"


def describe_features(record: Mapping[str, Any]) -> str:
    """One line: how much of the dense network's features is left."""
    said = f"mean cosine of pruned and dense features, held-out images: {record['feature_cosine']:.4f} (1: no change)"
    before = record.get("feature_cosine_before_recovery")
    return said if before is None else f"{said}; {before:.4f} before the recovery"


def describe_sizes(params: Mapping[str, int], flops: Mapping[str, int]) -> str:
    """Two lines: parameters and FLOPs of the tower, dense against pruned."""
    rows = [
        [name, human(sizes["dense"]), human(sizes["pruned"]), f"-{1 - sizes['pruned'] / sizes['dense']:.1%}"]
        for name, sizes in (("parameters", params), ("FLOPs", flops))
    ]
    return table(["vision tower", "dense", "pruned", "change"], rows)


def draw_widths(axes: Axes, record: Mapping[str, Any]) -> None:
    """Bars: the kept neurons of every block in front of the dense ones; marks: those found, where they were scaled.

    Args:
        record: of `prune.json`.
    """
    blocks = range(len(record["widths"]))
    found, scale = record.get("found_widths"), record.get("scale", 1)
    kept = f"kept: found × {scale:.3f}" if found else "kept"
    axes.bar(blocks, record["dense_widths"], color=GREY, label="dense")
    axes.bar(blocks, record["widths"], color=BLUE, label=kept)
    if found:
        axes.plot(blocks, found, "D", color=ORANGE, markeredgecolor="black", label="found by the search")
    axes.set(xlabel="block (first to last)", ylabel="hidden neurons", title="Hidden neurons of each block's MLP")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(top=(1.35 if found else 1.2) * max(record["dense_widths"]))
    axes.legend(frameon=False, ncols=2, loc="upper left")


def draw_probes(axes: Axes, record: Mapping[str, Any]) -> None:
    """Lines: entropy against width, one line a block, every probe a dot; entropy in nats.

    Args:
        record: of `prune.json`, of a search.
    """
    probes, dense_widths = record["probes"], record["dense_widths"]
    blocks = sorted({block for block, _, _ in probes})
    colours = colormaps["viridis"]
    few = len(blocks) <= 12
    for block in blocks:
        points = sorted((width / dense_widths[block], entropy) for b, width, entropy in probes if b == block)
        colour = colours(0.92 * block / max(1, len(dense_widths) - 1))
        label = f"block {block}" if few else None
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.2, color=colour, label=label)
    title = "Search: entropy at each width tried"
    axes.set(xlabel="share of the block's neurons kept", ylabel="entropy of the features (nats)")
    axes.set_title(title + ("\n(before scaling to the target size)" if record.get("found_widths") else ""))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    if few and blocks:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    elif blocks:
        scale = ScalarMappable(Normalize(0, len(dense_widths) - 1), colours)
        axes.figure.colorbar(scale, ax=axes, label="block")


def draw_errors(axes: Axes, errors: Sequence[Mapping[str, float]]) -> None:
    """Bars: the error of every refitted output, with and without the refit, as a share of the output's variance."""
    for offset, key, label, colour in ((-0.2, "without", "pruned", ORANGE), (0.2, "with", "pruned and refitted", BLUE)):
        places = [place + offset for place in range(len(errors))]
        axes.bar(places, [error[key] for error in errors], 0.4, color=colour, label=label)
    axes.set(xlabel="block (first to last)", ylabel="mean squared error / variance of the output")
    axes.set_title("Error of each block's MLP output")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(y=0.15)
    axes.legend(frameon=False, ncols=2, loc="upper left")


def draw_pruning(record: Mapping[str, Any]) -> Figure:
    """`prune.png`: widths per block, entropy per probe where there was a search, errors where there was a refit."""
    probes, errors = record["probes"], record.get("compensation")
    number = 1 + bool(probes) + bool(errors)
    figure, axes = panels(number, 5.6 * number, 4.3)
    draw_widths(axes[0], record)
    if probes:
        draw_probes(axes[1], record)
        for key, name, style in (("dense_entropy", "dense", ":"), ("final_entropy", "pruned", "--")):
            axes[1].axhline(record[key], color="black", linewidth=0.8, linestyle=style)
            axes[1].annotate(
                name, (1, record[key]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
            )
    if errors:
        draw_errors(axes[-1], errors)
    heading = [f"{_model(record['settings'])} ({_choices(record['settings'])})"] if "settings" in record else []
    lines = [part for line in [*heading, describe_change(record)] for part in wrap(line, LETTERS * number)]
    figure.suptitle("\n".join(lines))
    return figure


def _model(settings: Mapping[str, Any]) -> str:
    """The name of what was pruned; of a path, its end."""
    return Path(settings["model"]["name"]).name.removesuffix(".json")


def _choices(settings: Mapping[str, Any]) -> str:
    """What was chosen by name."""
    own, criterion = settings["prune"], settings["score"]["criterion"]
    widths = "given widths" if own["widths"] is not None else f"allocation: {own['allocation']}"
    return f"criterion: {criterion}, {widths}, compensation: {own['compensation']}"


def describe_change(record: Mapping[str, Any]) -> str:
    """One line of `prune.json`: parameters, FLOPs, and what is left of the features."""
    sizes = [
        f"{human(size['pruned'])} of {human(size['dense'])} {name} ({size['pruned'] / size['dense']:.1%})"
        for size, name in ((record["params"], "parameters"), (record["flops"], "FLOPs"))
    ]
    left = record.get("feature_cosine")
    return "; ".join(sizes + ([] if left is None else [f"cosine with the dense features {left:.3f}"]))


SWEEP_HEADERS = ["entropy_increase", "parameters", "share", "FLOPs", "share", "entropy", "above dense"]


def sweep_table(record: Mapping[str, Any]) -> str:
    """Size and entropy at every threshold of a sweep; entropies in nats."""
    rows = []
    for point in record["points"]:
        sizes = [
            word
            for key in ("params", "flops")
            for word in (human(point[key]), f"{point[key] / record['dense'][key]:.1%}")
        ]
        above = point["final_entropy"] - point["dense_entropy"]
        rows.append([f"{point['entropy_increase']:g}", *sizes, f"{point['final_entropy']:.4f}", f"{above:+.4f}"])
    return table(SWEEP_HEADERS, rows)


def plot_sweep(record: Mapping[str, Any], path: Path) -> None:
    """`prune_sweep.png`: entropy against the share of the parameters that is left, and widths per block."""
    figure, axes = panels(2, 11.2, 4)
    points = record["points"]
    shares = [point["params"] / record["dense"]["params"] for point in points]
    above = [point["final_entropy"] - point["dense_entropy"] for point in points]
    axes[0].plot(shares, above, marker="o", color=BLUE)
    for share, entropy, point in zip(shares, above, points, strict=True):
        axes[0].annotate(f" {point['entropy_increase']:g}", (share, entropy), fontsize=8, va="bottom")
    axes[0].set(xlabel="parameters (share of the dense tower)", ylabel="entropy increase over dense (nats)")
    axes[0].set_title("Size and entropy at each prune.entropy_increase")
    colours = colormaps["viridis"]
    for place, point in enumerate(points):
        colour = colours(0.92 * place / max(1, len(points) - 1))
        axes[1].plot(point["widths"], marker=".", color=colour, label=f"{point['entropy_increase']:g}")
    axes[1].set(xlabel="block (first to last)", ylabel="hidden neurons", title="Width of each block's MLP")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def sizes_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Several prunings of one model, by their prune.json."""
    rows = [
        [
            *(word for key in ("params", "flops") for word in _size(own[key])),
            f"{own['feature_cosine']:.4f}",
            f"{own['final_entropy'] - own['dense_entropy']:+.4f}",
        ]
        for own in records
    ]
    return table(["parameters", "share", "FLOPs", "share", "cosine with dense", "entropy increase"], rows)


def _size(size: Mapping[str, int]) -> tuple[str, str]:
    return human(size["pruned"]), f"{size['pruned'] / size['dense']:.1%}"


def plot_sizes(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """`prune_sizes.png`: what is left of the features against the size that was asked for, and widths per block."""
    figure, axes = panels(2, 11.2, 4.4)
    settings = records[0]["settings"]
    key = "flops" if settings["prune"]["target"].get("flops") else "params"
    what = {"params": "parameters", "flops": "FLOPs"}[key]
    shares = [own[key]["pruned"] / own[key]["dense"] for own in records]
    cosines = [own["feature_cosine"] for own in records]
    refit = settings["prune"]["compensation"]
    figure.suptitle(f"{_model(settings)}: pruned to several sizes" + f", refit: {refit}" * (refit != "none"))
    axes[0].plot([1.0, *shares], [1.0, *cosines], marker="o", color=BLUE)
    for share, cosine in zip(shares, cosines, strict=True):
        axes[0].annotate(f"{cosine:.4f}", (share, cosine), (5, -9), textcoords="offset points", fontsize=8)
    axes[0].annotate("dense", (1.0, 1.0), (-6, 3), textcoords="offset points", fontsize=8, ha="right")
    axes[0].set(xlabel=f"{what} (share of the dense tower)", ylabel="mean cosine with the dense features")
    axes[0].set_title("Features of held-out images")
    axes[0].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    colours = colormaps["viridis"]
    for place, (share, own) in enumerate(zip(shares, records, strict=True)):
        colour = colours(0.92 * place / max(1, len(records) - 1))
        axes[1].plot(own["widths"], marker=".", color=colour, label=f"{share:.0%} of the {what}")
    axes[1].set(xlabel="block (first to last)", ylabel="hidden neurons", title="Width of each block's MLP")
    axes[1].set_ylim(bottom=0)
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].legend(frameon=False, fontsize=8)
    save_figure(figure, path)
