"""How searches stand to each other: shares of cost, likeness of widths, differences of entropy; a run and all runs."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from amp.run.tables import table

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


def compare_batches(values: Sequence[float], expected: Sequence[float]) -> dict[str, float]:
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


def as_json(value: Any) -> Any:
    """The records with null where a number is not known, as the error of a single run."""
    if isinstance(value, Mapping):
        return {key: as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
