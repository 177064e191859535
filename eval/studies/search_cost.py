"""What searches cost and find, side by side on one model and the same images: plain, exact, racing, compensated."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.errors import UserError
from amp.prune.allocation import neuron_params
from amp.prune.blocks import find_widths
from amp.prune.measure.held_out import EntropyMeter
from amp.prune.measure.journal import Journal
from amp.prune.measure.networks import Candidates, open_compensation
from amp.prune.measure.store import Shelf
from amp.run.tables import table
from amp.run.world import world
from amp.settings.prune import PruneConfig, SearchSettings
from amp.towers import Tower

Record = dict[str, Any]
# Of a table: a search's number, its form, and which is the worst of many.
COLUMNS: dict[str, tuple[str, str, Callable[..., float]]] = {
    "block forwards": ("forwards_share", ".3f", max),
    "seconds": ("seconds_share", ".3f", max),
    "seconds of exact's": ("seconds_of_exact", ".3f", max),
    "blocks equal": ("blocks_equal", ".1%", min),
    "largest step": ("largest_step", ".2g", max),
    "neurons": ("neurons_more", "+.2%", partial(max, key=abs)),
    "parameters": ("params_more", "+.2%", partial(max, key=abs)),
}


@dataclass
class Bench:
    """A dense tower, its scores and the images of one order, in memory.

    Attributes:
        held_out: batches of the search.
        fresh: batches that no search saw.
        calibration: batches of the training split, for compensation.
    """

    config: PruneConfig
    tower: Tower
    scores: Sequence[Tensor]
    held_out: list[Tensor] = field(default_factory=list)
    fresh: list[Tensor] = field(default_factory=list)
    calibration: list[Tensor] = field(default_factory=list)

    def read(self, seed: int, num_fresh: int, compensated: bool) -> None:
        """The images in the order of a seed; fresh ones are those that follow on the search's.

        Raises:
            UserError: the split has too few images.
        """
        data = self.config.data.model_copy(update={"seed": seed})
        paths, num_held_out = list_images(data, "val"), data.num_val_samples
        if num_fresh and (num_held_out or len(paths)) + num_fresh > len(paths):
            raise UserError(
                "--fresh",
                f"{num_fresh} images besides the data.num_val_samples {num_held_out} of the search; the split "
                f"has {len(paths)}",
            )
        num_images = None if num_held_out is None else num_held_out + num_fresh
        batches = list(Batches(paths, self.tower.transform, data, num_images))
        count = (num_held_out or len(paths)) // data.batch_size
        self.held_out, self.fresh = batches[:count], batches[count:] if num_fresh else []
        if compensated:
            num_samples = self.config.prune.num_calibration_samples
            train = Batches(list_images(data, "train"), self.tower.transform, data, num_samples)
            self.calibration = list(train)

    def search(self, own: SearchSettings) -> Record:
        """One search, from images in memory to widths: `{widths, entropies, block_forwards, seconds, ...}`."""
        shelf = Shelf(own.store, world().device, Path(self.config.output.dir) / ".inputs")
        started = time.perf_counter()
        meter = self._meter(self.held_out, shelf, own.inputs_every)
        found = find_widths(self._candidates(meter, own), own, own.entropy_increase)
        seconds = time.perf_counter() - started
        meter.close()
        ends = {"dense_entropy": found.dense_entropy, "final_entropy": found.final_entropy}
        record = {"widths": found.widths, "params": self.num_params(found.widths), **ends}
        return {**record, "probe_batches": found.probe_batches, **meter.cost, "seconds": seconds}

    def num_params(self, widths: Sequence[int]) -> int:
        """Parameters of the tower with these widths."""
        total = sum(parameter.numel() for parameter in self.tower.visual.parameters())
        slots = zip(self.tower.slots, widths, strict=True)
        return total - sum((slot.hidden_width - width) * neuron_params(slot) for slot, width in slots)

    def fresh_entropies(self, own: SearchSettings, widths: Sequence[int]) -> list[float]:
        """Of each fresh batch, in nats, by the network with these widths, compensated where the search was."""
        meter = self._meter(self.fresh, None, None)
        candidates = self._candidates(meter, own)
        with ExitStack() as narrowed:
            for block in reversed(range(len(widths))):
                narrowed.enter_context(candidates.narrowed(block, widths[block]))
            return meter.measure(0, range(len(self.fresh)))

    def _meter(self, batches: list[Tensor], shelf: Shelf | None, every: int | None) -> EntropyMeter:
        return EntropyMeter(self.tower, batches, self.config.score.inverse_temperature, shelf, every)

    def _candidates(self, meter: EntropyMeter, own: SearchSettings) -> Candidates:
        compensation = open_compensation(self.tower, self.scores, own, lambda: self.calibration)
        journal = Journal(None, {"settings": {"prune": {}}}, [])
        return Candidates(self.tower, self.scores, meter, journal, compensation, own.compensate_in_search)


def run_searches(bench: Bench, searches: Mapping[str, SearchSettings]) -> dict[str, Record]:
    """The searches, each beside the plain and the exact one; fresh entropies at equal size where there are images.

    Where the plain search is left out, its block forwards are reckoned, and no share of its seconds is known.
    """
    tower, steps = bench.tower, bench.config.prune.search_steps
    found = {name: bench.search(own) for name, own in searches.items()}
    first = "exact" if "exact" in found else next(iter(found))
    exact, passes = found[first], 1 + len(tower.slots) * steps
    reckoned = {"block_forwards": len(tower.slots) * passes * len(bench.held_out), "seconds": None}
    grid = [max(1, width // 2**steps) for width in tower.widths]
    for record in found.values():
        record |= compare(record, found.get("plain", reckoned), exact, grid)
    if bench.fresh:
        costs = [neuron_params(slot) for slot in tower.slots]
        expected = bench.fresh_entropies(searches[first], exact["widths"])
        for name, record in found.items():
            widths = scale_to(record["widths"], exact["widths"], tower.widths, costs)
            record["fresh"] = pair(bench.fresh_entropies(searches[name], widths), expected)
    return found


def compare(record: Record, plain: Record, exact: Record, grid: Sequence[int]) -> Record:
    """How a search stands to the plain one in cost, and to the exact one in widths, in steps of its grid."""
    steps = [abs(a - b) / step for a, b, step in zip(record["widths"], exact["widths"], grid, strict=True)]
    return {
        "forwards_share": record["block_forwards"] / plain["block_forwards"],
        "seconds_share": record["seconds"] / plain["seconds"] if plain["seconds"] else None,
        "seconds_of_exact": record["seconds"] / exact["seconds"],
        "blocks_equal": sum(step == 0 for step in steps) / len(steps),
        "largest_step": max(steps),
        "neurons_more": sum(record["widths"]) / sum(exact["widths"]) - 1,
        "params_more": record["params"] / exact["params"] - 1,
    }


def scale_to(widths: Sequence[int], goal: Sequence[int], dense: Sequence[int], costs: Sequence[int]) -> list[int]:
    """`widths` times the one factor at which they cost what `goal` does, as nearly as whole neurons can.

    Args:
        costs: of one neuron of each block.
    """

    def at(factor: float) -> list[int]:
        return [min(max(1, round(width * factor)), whole) for width, whole in zip(widths, dense, strict=True)]

    def missing(tried: Sequence[int]) -> int:
        return sum((b - a) * cost for a, b, cost in zip(tried, goal, costs, strict=True))

    low, high = 0.0, float(max(dense))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if missing(at(middle)) > 0 else (low, middle)
    return min((at(low), at(high)), key=lambda tried: abs(missing(tried)))


def pair(values: Sequence[float], expected: Sequence[float]) -> dict[str, float]:
    """Means of the same batches, and the standard errors of the mean and of the difference: nats."""
    differences = [a - b for a, b in zip(values, expected, strict=True)]
    return {
        "entropy": statistics.fmean(values),
        "error": _error(values),
        "difference": statistics.fmean(differences),
        "difference_error": _error(differences),
    }


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def run_table(found: Mapping[str, Record]) -> str:
    """One threshold and order: shares of the plain search's cost, and likeness to the exact search."""
    rows = []
    for name, record in found.items():
        row = [name, *("-" if record[key] is None else f"{record[key]:{form}}" for key, form, _ in COLUMNS.values())]
        if fresh := record.get("fresh"):
            row += [f"{fresh['entropy']:.5f}", f"{fresh['difference']:+.5f} ± {fresh['difference_error']:.5f}"]
        rows.append(row)
    return table(["search", *COLUMNS, "fresh entropy", "less exact's"][: len(rows[0])], rows)


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Record]:
    """Of every search over all runs: mean and worst of its shares and its likeness to the exact search.

    `fresh`: the mean difference over the runs, its standard error, and the share of runs whose difference is within
    one standard error of the exact network's entropy (`within`) and of the difference (`within_paired`).
    """
    summary: dict[str, Record] = {}
    for name in runs[0]["searches"]:
        records = [run["searches"][name] for run in runs]
        summary[name] = {"runs": len(records)}
        for key, _, worst in COLUMNS.values():
            values = [record[key] for record in records if record[key] is not None]
            summary[name][key] = {"mean": statistics.fmean(values), "worst": worst(values)} if values else None
        fresh = [record["fresh"] for record in records if "fresh" in record]
        if fresh:
            differences = [one["difference"] for one in fresh]
            summary[name]["fresh"] = {
                "difference": statistics.fmean(differences),
                "error": _error(differences),
                "within": statistics.fmean(abs(one["difference"]) <= one["error"] for one in fresh),
                "within_paired": statistics.fmean(abs(one["difference"]) <= one["difference_error"] for one in fresh),
            }
    return summary


def summary_table(summary: Mapping[str, Record]) -> str:
    """Mean and, in brackets, worst over all runs."""
    rows = []
    for name, record in summary.items():
        row = [name]
        for key, form, _ in COLUMNS.values():
            one = record[key]
            row.append("-" if one is None else f"{one['mean']:{form}} ({one['worst']:{form}})")
        if fresh := record.get("fresh"):
            row += [f"{fresh['difference']:+.5f} ± {fresh['error']:.5f}", f"{fresh['within']:.0%}"]
        rows.append(row)
    return table(["search", *COLUMNS, "fresh entropy less exact's", "within 1 s.e."][: len(rows[0])], rows)
