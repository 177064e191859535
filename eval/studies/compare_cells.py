"""The cells of a comparison: a row of the table at a size on one choice of images, each a run of its own."""

import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from amp.data.identity import digests_of
from amp.errors import UserError
from amp.run.console import progress, say
from amp.run.identity import identity
from amp.run.run import Run
from amp.run.world import World, among, world
from amp.settings.compare import CompareConfig
from studies.compare import Trial
from studies.quality import InMemoryQuality

NOT_OF_A_CELL = ("rows", "compare")  # A cell's own row decides it, and it stays when others come.
SCRIPT = "eval/eval_compare.py"


class Cell(NamedTuple):
    """One measurement: a row of the table, at a size, on one choice of images."""

    seed: int
    row: str
    size: float

    @property
    def folder(self) -> str:
        """Of all cells of its row, in the run's folder."""
        return "cells/" + re.sub(r"[^A-Za-z0-9]+", "-", self.row).strip("-")

    @property
    def file(self) -> str:
        """Its name in the folder."""
        return f"{self.size:g}_{self.seed}.json"


Cells = Mapping[Cell, Run[CompareConfig]]


def train_dense(config: CompareConfig) -> None:
    """The demo's dense model, where its file is missing. Raises UserError when the training fails."""
    weights = config.model.pretrained
    if config.data.name != "digit_scenes" or weights is None or Path(weights).exists():
        return
    say(f"training the dense model {weights}")
    words = ["--scenes", config.data.root, "--out", weights, "--model", config.model.name]
    if subprocess.run([sys.executable, "-m", "amp.demo.dense", *words], check=False).returncode:
        raise UserError("model.pretrained", f"{weights}: is missing, and its training failed, see above")


def open_cells(run: Run[CompareConfig]) -> Cells:
    """The cells in the order in which they are worked off, each with its folder and what decides it.

    A cell is decided by its row alone, not by the others; its size and seed are in its name. The dense model must be
    there.
    """
    config, common = run.config, identity(run.config, NOT_OF_A_CELL, **digests_of(run.config.data, "train", "val"))
    cells = {}
    sizes, seeds = config.compare.sizes, config.compare.seeds
    for cell in (Cell(seed, row, size) for seed in seeds for row in config.rows for size in sizes):
        row = {"name": cell.row, **config.rows[cell.row].model_dump(mode="json")}
        own = {**common, "settings": {**common["settings"], "row": row}}
        cells[cell] = Run(config, run.path(cell.folder), own)
    return cells


def fill_cells(cells: Cells, quality: InMemoryQuality) -> None:
    """All are pruned, then all are distilled, each process its part of them; what is there is reused.

    Raises:
        UserError: a cell is of another run.
    """
    everyone, alone = world(), World(0, 1, world().device)
    names = list(cells)
    config = cells[names[0]].config
    trial = cache(lambda seed: Trial(config, seed))
    # Neighbours share searches.
    part = slice(*(edge * len(names) // everyone.size for edge in (everyone.rank, everyone.rank + 1)))
    spread = names[everyone.rank :: everyone.size]
    for name, work, own in (("prune", prune_cell, names[part]), ("distil", distil_cell, spread)):
        with among(alone):
            for cell in progress(own, name, "cell"):
                work(cells[cell], cell, trial(cell.seed), quality)
        everyone.barrier()


def prune_cell(run: Run[CompareConfig], cell: Cell, trial: Trial, quality: InMemoryQuality) -> None:
    """Widths and quality before any training."""
    if run.found(cell.file) is None:
        row = run.config.rows[cell.row]
        widths = trial.widths(row, cell.size)
        pruned = quality.measure(trial.prune(row, widths))
        run.write(cell.file, {"widths": widths, "params": trial.share(widths), "pruned": pruned}, SCRIPT)


def distil_cell(run: Run[CompareConfig], cell: Cell, trial: Trial, quality: InMemoryQuality) -> None:
    """The distillation's curve and its end, beside what pruning found."""
    found = run.found(cell.file)
    assert found is not None
    if "curve" not in found:
        student = trial.prune(run.config.rows[cell.row], found["widths"])
        curve = trial.distil(student, quality.top1)
        run.write(cell.file, {"curve": curve, "distilled": quality.measure(student), **found}, SCRIPT)


def read_cells(cells: Cells) -> dict[Cell, dict[str, Any]]:
    """What they hold, by one process."""
    with among(World(0, 1, world().device)):
        return {cell: run.found(cell.file) or {} for cell, run in cells.items()}
