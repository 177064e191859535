"""Texts that people write beside their images: class names, prompts, labels and captions.

Light to import: a mistake in a file, which is told with its line, answers before torch is loaded.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from amp.data.files import printable
from amp.errors import UserError, nearest
from amp.evaluation.readers.class_folders import some
from amp.settings.base import check_template

TEMPLATES = ("a photo of a {c}.",)
_COLUMNS = {"file": ("file", "file_name"), "caption": ("caption", "text")}
_SUFFIXES = (".csv", ".tsv", ".jsonl")


def read_lines(option: str, file: str | Path) -> list[str]:
    """The lines of a file in UTF-8, without the spaces around them. Raises UserError: none, or an empty one."""
    lines = [line.strip() for line in _lines(option, file)]
    if not lines or "" in lines:
        raise UserError(option, f"{file}: line {lines.index('') + 1 if lines else 1} is empty")
    return lines


def read_templates(option: str, file: str | Path) -> list[str]:
    """The prompts of a file, one a line, with `{c}` where the class stands. Raises UserError."""
    lines = read_lines(option, file)
    for number, line in enumerate(lines, 1):
        try:
            check_template(line)
        except ValueError as error:
            raise UserError(option, f"{file}: line {number} is {error}") from None
    return lines


def name_classes(folders: Sequence[str], option: str, file: str | None) -> list[str]:
    """What the classes of some folders are called, in the folders' order.

    Args:
        folders: the sorted class folders.
        file: a name of each, one a line in that order, or FOLDER<TAB>NAME in any order; None: the folders' own
            names, `_` as a space.
    Raises:
        UserError: the names are not as many as the folders, or a folder has none.
    """
    if file is None:
        return [name.replace("_", " ") for name in folders]
    lines = read_lines(option, file)
    if not any("\t" in line for line in lines):
        if len(lines) != len(folders):
            raise UserError(
                option,
                f"{file}: {len(lines)} lines for {len(folders)} class folders; write one per folder, or "
                "FOLDER<TAB>NAME",
            )
        return lines
    name_of: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        folder, _, name = (part.strip() for part in line.partition("\t"))
        if not (folder and name):
            raise UserError(option, f"{file}: line {number} is {printable(line)!r}; expected FOLDER<TAB>NAME")
        if folder in name_of:
            raise UserError(option, f"{file}: line {number} repeats the folder {printable(folder)}")
        name_of[folder] = name
    if missing := [folder for folder in folders if folder not in name_of]:
        known = nearest(missing[0], [name for name in name_of if name not in folders])
        raise UserError(option, f"{file}: has no line for the class folder {some(missing)}{known}")
    return [name_of[folder] for folder in folders]


def read_pairs(option: str, file: str | Path) -> dict[str, list[str]]:
    """{image file: its captions} of a .csv or .tsv file with the columns `file` and `caption` (or `file_name` and
    `text`) in its first line, or of a .jsonl file of objects with these keys; an image has a row for each caption, in
    .jsonl also a list of them.

    Raises:
        UserError: another kind of file, or a row without a file or a caption.
    """
    suffix = Path(file).suffix.lower()
    if suffix not in _SUFFIXES:
        raise UserError(option, f"{file}: expected a file that ends in {', '.join(_SUFFIXES)}")
    rows = (
        _json_rows(option, file) if suffix == ".jsonl" else _table_rows(option, file, "\t" if suffix == ".tsv" else ",")
    )
    captions_of: dict[str, list[str]] = {}
    for number, row in rows:
        name, said = (_value(option, file, number, row, column) for column in _COLUMNS)
        captions = said if isinstance(said, list) else [said]
        for value in (name, *captions):
            if not isinstance(value, str) or not value.strip():
                raise UserError(option, f"{file}: line {number}: expected a text, found {value!r:.40}")
        captions_of.setdefault(name, []).extend(captions)
    if not any(captions_of.values()):
        raise UserError(option, f"{file}: holds no caption")
    return captions_of


def _value(option: str, file: str | Path, number: int, row: dict[str, Any], column: str) -> Any:
    found = [row[name] for name in _COLUMNS[column] if row.get(name) is not None]
    if not found:
        raise UserError(option, f"{file}: line {number} has no {' or '.join(_COLUMNS[column])}")
    return found[0]


def _table_rows(option: str, file: str | Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = csv.DictReader(io.StringIO(_read(option, file), newline=""), delimiter=delimiter, strict=True)
    last = 1
    try:
        header = [*(lines.fieldnames or ())]
        for names in _COLUMNS.values():
            if not set(names) & set(header):
                raise UserError(
                    option,
                    f"{file}: line 1 has no column {' or '.join(names)}, only {some([*map(printable, header)])}",
                )
        for row in lines:
            if row.get(None):
                raise UserError(
                    option,
                    f"{file}: line {lines.line_num} has more values than columns; put captions with commas in quotes",
                )
            last = lines.line_num
            yield last, row
    except csv.Error as error:
        raise UserError(option, f"{file}: the row after line {last} cannot be read ({error})") from None


def _json_rows(option: str, file: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(option, file), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(option, f"{file}: line {number} is not a JSON object")
        yield number, row


def _lines(option: str, file: str | Path) -> list[str]:
    text = _read(option, file)
    return text.removesuffix("\n").split("\n") if text else []


def _read(option: str, file: str | Path) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(option, f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = Path(file).read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(option, f"{file}: line {line} is not UTF-8 text") from None
