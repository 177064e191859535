"""Tables and numbers as the console and the documents show them."""

import csv
from collections.abc import Sequence
from pathlib import Path

from amp.run.files import atomic


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first column left, the others right."""
    widths = [max(len(str(row[i])) for row in [headers, *rows]) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        cells = [
            str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(headers), rule, *(line(row) for row in rows)])


def write_table(path: Path, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The table as CSV where `path` ends in .csv, else as Markdown; written beside and renamed."""
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file, lineterminator="\n").writerows([headers, *rows])
        else:
            file.write(table(headers, rows) + "\n")


def percent(share: float | None) -> str:
    """A share in percent: 97.08; '-' where there is none."""
    return "-" if share is None else f"{100 * share:.2f}"


def human(count: float) -> str:
    """A count by its three leading digits: 1.01B, 519M, 4.00K; below 1,000 as it is."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if float(f"{count:.3g}") >= scale:
            return f"{count / scale:#.3g}".rstrip(".") + suffix
    return f"{count:.0f}"
