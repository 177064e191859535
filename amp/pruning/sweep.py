"""Several networks of one model beside each other: of several thresholds of the entropy, or of several sizes."""

import time
from collections.abc import Sequence
from pathlib import Path

from amp.pruning.blocks import search_blocks, searched_blocks
from amp.pruning.doubt import warn_of_grid
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.progress import SearchProgress
from amp.pruning.refit import CALIBRATION
from amp.pruning.report import plot_sizes, plot_sweep, sizes_table, sweep_table
from amp.pruning.size import sizes_of
from amp.run.console import say
from amp.run.files import PRUNE_RECORD, atomic
from amp.run.run import Run
from amp.run.sealed import read_json
from amp.run.world import world
from amp.settings.prune import PruneConfig
from amp.statistics.saved_sums import forget_sums


def write_sweep(run: Run[PruneConfig], networks: NarrowedNetworks, thresholds: Sequence[float]) -> None:
    """Writes prune_sweep.json, .md and .png: size and entropy at every threshold. The tower stays dense.

    Args:
        thresholds: in nats.
    """
    sizes = sizes_of(networks.tower)
    started = time.monotonic()
    points = []
    own = run.config.prune
    bar = SearchProgress("threshold", len(searched_blocks(networks.tower, own)) * own.search_steps, len(thresholds))
    for threshold in thresholds:
        found = search_blocks(networks, own, threshold, told=bar.next())
        ends = {"dense_entropy": found.dense_entropy, "final_entropy": found.final_entropy}
        points.append({"entropy_increase": threshold, "widths": found.widths, **sizes(found.widths), **ends})
    bar.close()
    warn_of_grid(found.widths, networks.tower.widths, own)
    seconds = time.monotonic() - started
    cost = {**networks.held_out.cost, "seconds": round(seconds, 2)}
    record = {"dense": sizes(networks.tower.widths), "points": points, "cost": cost}
    if world().is_main:
        plot_sweep(record, run.path("prune_sweep.png"))
        with atomic(run.path("prune_sweep.md")) as partial:
            partial.write_text(sweep_table(record) + "\n", encoding="utf-8")
    run.write("prune_sweep.json", record, "main_prune.py")
    world().from_main(lambda: forget_sums(run.path(CALIBRATION)))
    say(sweep_table(record))
    say(f"wrote {run.folder}/prune_sweep.json, .md and .png in {seconds:.0f} s")
    say(
        "next: to write one of these networks, repeat the command with --set prune.entropy_increase=NATS, without "
        "--sweep"
    )


def write_sizes(home: Path, folders: Sequence[Path]) -> None:
    """Writes prune_sizes.md and .png: sizes, features and entropies of prunings that are done.

    Args:
        folders: of the prunings, largest size first.
    """

    def write() -> None:
        records = [read_json(folder / PRUNE_RECORD) for folder in folders]
        plot_sizes(records, home / "prune_sizes.png")
        with atomic(home / "prune_sizes.md") as partial:
            partial.write_text(sizes_table(records) + "\n", encoding="utf-8")
        say(sizes_table(records))
        say(f"wrote {home}/prune_sizes.md and .png")

    world().from_main(write)
