"""Compares criteria, allocations and compensations on one dense model; writes compare.md and compare.png."""

import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from amp.errors import UserError
from amp.run.console import progress, run_script, say
from amp.run.files import prepare_output, read_json, write_json
from amp.run.identity import check_same, identity
from amp.settings.command_line import parse_args
from amp.settings.compare import CompareConfig

if TYPE_CHECKING:
    from studies.compare import Exam, Seed

    from amp.run.world import World


class Cell(NamedTuple):
    """One measurement: a row of the table, at a size, on one choice of images."""

    seed: int
    row: str
    size: float

    def path(self, folder: Path) -> Path:
        return folder / "cells" / re.sub(r"[^A-Za-z0-9]+", "-", self.row).strip("-") / f"{self.size:g}_{self.seed}.json"


def train_dense(config: CompareConfig) -> None:
    """The demo's dense model, where its file is missing. Raises UserError when the training fails."""
    weights = config.model.pretrained
    if config.data.name != "digit_scenes" or weights is None or Path(weights).exists():
        return
    say(f"training the dense model {weights}")
    words = ["--scenes", config.data.root, "--out", weights, "--model", config.model.name]
    if subprocess.run([sys.executable, "-m", "amp.demo.dense", *words], check=False).returncode:
        raise UserError("model.pretrained", f"{weights}: is missing, and its training failed, see above")


def header(config: CompareConfig, row: str) -> dict[str, Any]:
    """What decides a cell beside its size and seed."""
    described = identity(config, ("rows", "compare"))
    described["settings"]["row"] = {"name": row, **config.rows[row].model_dump(mode="json")}
    return described


def prune_cell(config: CompareConfig, cell: Cell, of_seed: "Seed", exam: "Exam") -> dict[str, Any]:
    """Widths and quality before any training."""
    row = config.rows[cell.row]
    widths = of_seed.widths(row, cell.size)
    quality = exam(of_seed.prune(row, widths))
    return {"widths": widths, "params": of_seed.share(widths), "pruned": quality, **header(config, cell.row)}


def distil_cell(
    config: CompareConfig, cell: Cell, of_seed: "Seed", exam: "Exam", done: dict[str, Any]
) -> dict[str, Any]:
    """The cell with its distillation's curve and end beside what pruning found."""
    student = of_seed.prune(config.rows[cell.row], done["widths"])
    curve = of_seed.distil(student, exam.top1)
    return {"curve": curve, "distilled": exam(student), **done}


def run_cells(config: CompareConfig, cells: list[Cell], folder: Path, world: "World", exam: "Exam") -> None:
    """This process's part of the cells: all are pruned, then all are distilled; what is there is reused."""
    from studies.compare import Seed

    from amp.run.world import World, among

    of_seed = cache(lambda seed: Seed(config, seed))
    alone = World(0, 1, world.device)
    # Neighbours share searches.
    neighbours = cells[world.rank * len(cells) // world.size : (world.rank + 1) * len(cells) // world.size]
    for cell in progress(neighbours, "prune", "cell"):
        path = cell.path(folder)
        if path.exists():
            check_same(path, read_json(path), header(config, cell.row))
        else:
            with among(alone):
                write_json(path, prune_cell(config, cell, of_seed(cell.seed), exam))
    world.barrier()
    for cell in progress(cells[world.rank :: world.size], "distil", "cell"):
        done = read_json(cell.path(folder))
        if "curve" not in done:
            with among(alone):
                write_json(cell.path(folder), distil_cell(config, cell, of_seed(cell.seed), exam, done))


def make_exam(config: CompareConfig, world: "World") -> "Exam":
    """The test images of the data set, decoded once. Raises UserError where the model has no text tower."""
    from studies.compare import Exam

    from amp.evaluate.benchmarks import Benchmark
    from amp.evaluate.zeroshot import Evaluator
    from amp.towers import build_tower

    dense = build_tower(config.model, str(world.device))
    labelled, captioned = (
        Benchmark(task, config.data.name, config.data.root).build(dense.transform)  # type: ignore[arg-type]
        for task in ("zeroshot_classification", "zeroshot_retrieval")
    )
    classifier = Evaluator(dense).text_classifier(labelled.classes, labelled.templates)
    return Exam(dense, classifier, list(labelled), list(captioned))


def main() -> None:
    config = parse_args(CompareConfig, __doc__)
    if config.data.name != "digit_scenes":
        raise UserError(
            "data.name", f"{config.data.name}: only digit_scenes has the classes and captions to compare on"
        )

    from studies.compare_table import plot, tabulate

    from amp.run import world as distributed

    with distributed.start() as world:
        folder = world.from_main(lambda: prepare_output(config.output.dir))
        world.from_main(lambda: train_dense(config))
        exam = make_exam(config, world)
        cells = [Cell(*key) for key in _product(config)]
        run_cells(config, cells, folder, world, exam)
        world.barrier()
        if world.is_main:
            found: Mapping[Cell, Any] = {cell: read_json(cell.path(folder)) for cell in cells}
            dense = exam(exam.dense)
            text = tabulate(found, dense)
            (folder / "compare.md").write_text(text + "\n", encoding="utf-8")
            plot(found, dense, folder / "compare.png")
            say(f"{text}\nwrote {folder}/compare.md and compare.png")


def _product(config: CompareConfig) -> list[tuple[int, str, float]]:
    return [(s, row, size) for s in config.compare.seeds for row in config.rows for size in config.compare.sizes]


if __name__ == "__main__":
    run_script(main)
