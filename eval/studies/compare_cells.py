"""The cells of a comparison: a row of the table at a size on one choice of images, each a run of its own."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from amp.data.layouts import SPLITS
from amp.data.listing import Listing
from amp.errors import StoppedError, UserError
from amp.models.sizes import count_params
from amp.run.console import progress, say, warn_here
from amp.run.identity import identity, versions
from amp.run.run import Run
from amp.run.world import World, among, world
from amp.settings.compare import CompareConfig, CompareRowSettings
from amp.towers import Tower
from amp.towers.base import first_line
from studies.compare import Trial
from studies.methods import load_method
from studies.quality import InMemoryQuality, digests_of_test

NOT_OF_A_CELL = ("rows", "peers", "compare")  # A cell's own row decides it, and it stays when others come.
SCRIPT = "eval/eval_compare.py"
FAILED = "failed"  # in a cell: why a peer has no numbers


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
        raise UserError("model.pretrained", f"{weights}: missing, and its training failed; the message is above")


def open_cells(run: Run[CompareConfig]) -> Cells:
    """The cells in the order in which they are worked off, each with its folder and what decides it.

    A cell is decided by its row alone, not by the others; its size and seed are in its name. The dense model must be
    there.
    """
    config = run.config
    digests = {**Listing(config.data).digests(*SPLITS), **digests_of_test(config)}
    common = identity(config, NOT_OF_A_CELL, **digests)
    cells = {}
    sizes, seeds = config.compare.sizes, config.compare.seeds
    for cell in (Cell(seed, row, size) for seed in seeds for row in config.lines for size in sizes):
        row = {"name": cell.row, **config.lines[cell.row].model_dump(mode="json")}
        own = {**common, "settings": {**common["settings"], "row": row}}
        cells[cell] = Run(config, run.path(cell.folder), own)
    return cells


def fill_cells(cells: Cells, quality: InMemoryQuality) -> None:
    """All are pruned, then all are distilled where the settings ask for it, each process its part of them.

    What is there is reused; what has failed is tried again.

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
    steps = [("prune", prune_cell, names[part]), *([("distil", distil_cell, spread)] if config.distil else [])]
    for name, work, own in steps:
        with among(alone):
            for cell in progress(own, name, "cell"):
                work(cells[cell], cell, trial(cell.seed), quality)
        everyone.barrier()


def prune_cell(run: Run[CompareConfig], cell: Cell, trial: Trial, quality: InMemoryQuality) -> None:
    """Widths and quality before any training; of a peer that fails, why."""
    found, line = run.found(cell.file), run.config.lines[cell.row]
    if found is not None and FAILED not in found:
        return
    if isinstance(line, CompareRowSettings):
        widths = trial.widths(line, cell.size)
        tower = trial.prune(line, widths)
        share = count_params(tower) / trial.num_params
        run.write(cell.file, {"widths": widths, "params": share, "pruned": quality.measure(tower)}, SCRIPT)
        return
    with _telling(run, cell, {}):
        method, started = load_method(line.method), time.monotonic()
        tower = method.prune(trial, line, cell.size)
        seconds = round(time.monotonic() - started, 1)
        own = {"widths": tower.widths, "params": count_params(tower) / trial.num_params, "seconds": seconds}
        own["software"] = versions(tuple(pip.partition("==")[0] for pip in method.NEEDS.values()))
        run.write(cell.file, {**own, "pruned": quality.measure(tower)}, SCRIPT)


@contextmanager
def _telling(run: Run[CompareConfig], cell: Cell, found: dict[str, Any]) -> Iterator[None]:
    """What another library raises inside is written down, beside what was found before: one row's end is no other's."""
    try:
        yield
    except (StoppedError, MemoryError):
        raise
    except Exception as failure:
        warn_here(f"{cell.row} at {cell.size:g}, seed {cell.seed}: {first_line(failure)}")
        run.write(cell.file, {**found, FAILED: first_line(failure) or type(failure).__name__}, SCRIPT)


def distil_cell(run: Run[CompareConfig], cell: Cell, trial: Trial, quality: InMemoryQuality) -> None:
    """The distillation's curve and its end, beside what pruning found."""
    found, line = run.found(cell.file), run.config.lines[cell.row]
    assert found is not None
    if "curve" in found or "pruned" not in found:
        return

    def distil(student: Tower) -> None:
        curve = trial.distil(student, quality.top1)
        run.write(cell.file, {"curve": curve, "distilled": quality.measure(student), **found}, SCRIPT)

    if isinstance(line, CompareRowSettings):
        distil(trial.prune(line, found["widths"]))
    else:
        with _telling(run, cell, found):
            distil(load_method(line.method).prune(trial, line, cell.size))


def read_cells(cells: Cells) -> dict[Cell, dict[str, Any]]:
    """What they hold, by one process."""
    with among(World(0, 1, world().device)):
        return {cell: run.found(cell.file) or {} for cell, run in cells.items()}
