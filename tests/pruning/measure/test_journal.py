"""Laws of the journal: a search goes on after its last measurement, and ends as one that was never killed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import refusal
from helpers.scripted_entropy import INCREASE, ScriptedEntropy
from torch import Tensor

from amp.pruning.blocks import WidthsFound, search_blocks
from amp.pruning.measure.journal import Journal, other_search
from amp.pruning.measure.networks import NarrowedNetworks
from amp.settings.prune import SearchSettings
from amp.towers import Tower

HEADER: dict[str, Any] = {"settings": {"prune": {"entropy_increase": 0.0, "search_steps": 6}, "scores_sha256": "a"}}


def open_journal(path: Path, thresholds: tuple[float, ...] = (INCREASE,), **settings: Any) -> Journal:
    header = {**HEADER, "settings": {**HEADER["settings"], **settings}}
    return Journal(path, header, list(thresholds))


class Killed(ScriptedEntropy):
    """An entropy of many batches, that dies at its `last` measurement."""

    def __init__(self, tower: Tower, last: int | None = None) -> None:
        super().__init__(tower, lambda widths: sum(0.003 * 256 / width for width in widths))
        self.num_batches, self.last, self.charged = 100, last, 0

    def charge(self, block: int, batches: range) -> None:
        self.charged += len(batches) * (5 - block)

    def measure(self, block: int, batches: range) -> list[float]:
        if self.last is not None and len(self.asked) >= self.last:
            raise KeyboardInterrupt
        self.charge(block, batches)
        (entropy,) = super().measure(block, batches)
        return [entropy * (1 + 0.1 * ((batch * 7) % 5 - 2)) for batch in batches]


def run(tower: Tower, scores: list[Tensor], held_out: Killed, journal: Journal, search: Any) -> WidthsFound:
    settings = SearchSettings(search=search, preset="fast")
    return search_blocks(NarrowedNetworks(tower, scores, held_out, journal), settings, INCREASE)


@pytest.mark.slow
@pytest.mark.parametrize("search", ["plain", "exact", "racing"])
def test_killed_at_any_measurement_it_ends_the_same(
    tower: Tower, scores: list[Tensor], tmp_path: Path, search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # An exception kills here, and leaves the disk's cache alone.
    whole = Killed(tower)
    expected = run(tower, scores, whole, Journal(), search)
    number = len(whole.asked)
    assert number >= 30
    for last in range(0, number, max(1, number // 20)):
        path = tmp_path / f"{last}.jsonl"
        killed, resumed = Killed(tower, last), Killed(tower)
        with pytest.raises(KeyboardInterrupt):
            run(tower, scores, killed, open_journal(path), search)
        if last % 2:
            # Killed while it wrote its last line.
            path.write_bytes(path.read_bytes()[:-3])
        assert run(tower, scores, resumed, open_journal(path), search) == expected
        assert len(killed.asked) + len(resumed.asked) == number + last % 2
        assert resumed.charged == whole.charged
    assert tower.widths == [256] * 5


def test_a_search_that_ended_is_decided_again_without_a_measurement(
    tower: Tower, scores: list[Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "journal.jsonl"
    first = run(tower, scores, Killed(tower), open_journal(path, (1e-3, INCREASE)), "exact")
    before = path.read_bytes()
    assert run(tower, scores, Killed(tower, last=0), open_journal(path), "exact") == first
    assert path.read_bytes() == before


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    open_journal(path).add((1, 2), [0.5])
    path.write_text(path.read_text() + '{"widths"')  # Its run may be writing this line.
    before = path.read_bytes()
    assert "before the scores changed" in refusal(lambda: open_journal(path, scores_sha256="b"))
    assert "thresholds = [0.01], but this run has [0.02]" in refusal(lambda: open_journal(path, (0.02,)))
    prune = {"entropy_increase": 0.0, "search_steps": 5}
    assert "prune.search_steps = 6, but this run has 5" in refusal(lambda: open_journal(path, prune=prune))
    assert other_search(path, HEADER, [INCREASE]) is None
    assert other_search(path, HEADER, [0.02]) == ("thresholds", [INCREASE], [0.02])
    assert path.read_bytes() == before
    assert open_journal(path)[1, 2] == [0.5]


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"widths": [1], "start": 1, "entropies": [0.1]}', '{"widths": [1], "start": 0}']
)
def test_damage_before_the_last_line_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    journal = open_journal(path)
    journal.add((1, 2), [0.5])
    path.write_text(f"{path.read_text()}{line}\n")
    journal.add((3, 4), [0.5])
    assert f"{path}: line 3 is damaged" in refusal(lambda: open_journal(path))


def test_a_journal_comes_with_its_first_measurement(tmp_path: Path) -> None:
    """And its header with the file's name, so that no kill can part them; an empty file is damage."""
    path = tmp_path / "journal.jsonl"
    path.touch()
    assert "line 1 is damaged" in refusal(lambda: open_journal(path))
    path.unlink()
    journal = open_journal(path)
    assert (journal.file, path.exists()) == (None, False)
    journal.add((1, 2), [0.5])
    assert journal.file == path
    header, line = map(json.loads, path.read_text().splitlines())
    assert header["settings"]["thresholds"] == [INCREASE]
    assert line["widths"] == [1, 2]


def test_what_a_clock_said_stands(tmp_path: Path) -> None:
    """Another measurement would say another number, and lead a resumed search elsewhere."""
    path = tmp_path / "journal.jsonl"
    seconds = iter([0.7, 0.9])
    journal = open_journal(path)
    assert [journal.size((8, 4), lambda: next(seconds)) for _ in range(2)] == [0.7, 0.7]
    journal.add((8, 4), [0.5])
    resumed = open_journal(path)
    assert resumed.size((8, 4), lambda: next(seconds)) == 0.7
    assert resumed[8, 4] == [0.5]
    assert resumed.size((8, 8), lambda: next(seconds)) == 0.9
