"""Laws of log.jsonl: it holds the steps that are done, whatever a kill left of it; damage is told by its line."""

import json
from pathlib import Path

import pytest
from conftest import refusal

from amp.distillation.keeping import check_board, cut_log


def written(folder: Path, steps: range, end: str = "") -> Path:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in steps) + end)
    return path


@pytest.mark.parametrize("end", ["", '{"step": 7, "lo', '{"step": 7}', "\0\0\0\n"])
def test_what_came_after_the_last_checkpoint_is_cut(tmp_path: Path, end: str) -> None:
    path = written(tmp_path, range(7), end)
    for step in (7, 5, 0):
        cut_log(path, step)
        assert path.read_text() == "".join(f'{{"step": {number}, "loss": 0.5}}\n' for number in range(step))


def test_no_log_and_one_that_begins_later_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut_log(tmp_path / "log.jsonl", 0)
    assert (tmp_path / "log.jsonl").read_text() == ""
    path = written(tmp_path, range(4, 9))
    cut_log(path, 6)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [4, 5]
    assert "holds only 2 of the 6 finished steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"loss": 1.0}', '{"step": "1"}', '{"step": 1, "loss": NaN}', "[" * 9999]
)
def test_damage_before_is_told_by_its_line_and_nothing_is_lost(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, range(1), f"{line}\n" + '{"step": 2}\n')
    before = path.read_bytes()
    assert refusal(lambda: cut_log(path, 3)).startswith(f"{path}: line 2 is damaged")
    assert path.read_bytes() == before


def test_a_folder_or_a_file_in_the_place_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    assert "log.jsonl: cannot be read (Is a directory); move it" in refusal(lambda: cut_log(tmp_path / "log.jsonl", 0))
    (tmp_path / "tensorboard").touch()
    assert "tensorboard: is a file" in refusal(lambda: check_board(tmp_path / "tensorboard"))
