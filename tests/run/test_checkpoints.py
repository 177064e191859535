"""Resumable states: whole or not there, the last ones and the best one."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import refusal

from amp.errors import StoppedError
from amp.run.checkpoints import Checkpoints
from amp.run.run import Run


def _checkpoints(folder: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(Run(None, folder, {}), keep)


def test_the_last_checkpoints_and_the_best_one_stay(tmp_path: Path) -> None:
    own = _checkpoints(tmp_path)
    assert (own.steps(), own.last()) == ([], "none")
    for step in (3, 6, 9, 12):
        own.save(step, {"a": torch.full((2,), float(step)), "b": torch.tensor(step)}, {"note": "x"}, best=3)
    assert own.steps() == [3, 9, 12]
    values = {"a": torch.zeros(2), "b": torch.tensor(0)}
    own.load(9, values)
    assert (values["a"].tolist(), values["b"].item()) == ([9.0, 9.0], 9)
    assert own.record(12) == {"note": "x", "step": 12}


def test_what_is_half_written_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = _checkpoints(tmp_path)
    own.save(3, {"a": torch.zeros(2)}, {}, best=0)
    shutil.copytree(own.path(3), own.folder / ".step_0000006.partial")
    assert own.steps() == [3]
    own.save(6, {"a": torch.ones(2)}, {}, best=0)
    assert sorted(path.name for path in own.folder.iterdir()) == ["step_0000003", "step_0000006"]


def test_an_unreadable_checkpoint_is_named(tmp_path: Path) -> None:
    own = _checkpoints(tmp_path)
    own.save(3, {"a": torch.zeros(2)}, {}, best=0)
    (file,) = own.path(3).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    message = refusal(lambda: own.load(3, {"a": torch.zeros(2)}))
    assert message.startswith(f"{own.path(3)}: cannot be read")
    (own.path(3) / "state.json").write_text("{")
    assert str(own.path(3)) in refusal(lambda: own.record(3))


def test_an_unwritable_folder_stops_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(StoppedError, match=r"checkpoints cannot be written .*last good checkpoint: none"):
        _checkpoints(tmp_path).save(3, {"a": torch.zeros(2)}, {}, best=0)


def test_a_checkpoint_of_another_run_is_refused_and_an_old_one_without_digests_is_not(tmp_path: Path) -> None:
    settings = {"optim": {"epochs": 3}}
    old = Checkpoints(Run(None, tmp_path, {"settings": settings}), 2)
    old.save(3, {"a": torch.zeros(2)}, {}, best=0)
    same = Checkpoints(Run(None, tmp_path, {"settings": settings, "student_sha256": "a"}), 2)
    assert same.record(3) == {"step": 3}
    same.save(6, {"a": torch.zeros(2)}, {}, best=0)
    other = Checkpoints(Run(None, tmp_path, {"settings": settings, "student_sha256": "b"}), 2)
    assert "step_0000006 was made before the student changed" in refusal(lambda: other.record(6))
    other = Checkpoints(Run(None, tmp_path, {"settings": {"optim": {"epochs": 4}}}), 2)
    assert "step_0000003 was made with optim.epochs = 3, asked for 4" in refusal(lambda: other.record(3))
