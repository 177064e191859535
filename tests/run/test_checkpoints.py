"""Resumable states: whole or not there, the last ones and the best one."""

import errno
import os
import shutil
from concurrent import futures
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from conftest import refusal
from torch import Tensor

from amp.errors import StoppedError
from amp.run.checkpoints import Checkpoints
from amp.run.run import Run
from amp.run.saving import TensorWriter


def _checkpoints(folder: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(Run(None, folder, {}), keep)


def _save(own: Checkpoints, step: int, tensors: dict[str, Tensor]) -> None:
    own.save(step, tensors, {}, best=0)
    own.wait()


def test_the_last_checkpoints_and_the_best_one_stay(tmp_path: Path) -> None:
    own = _checkpoints(tmp_path)
    assert (own.steps(), own.last()) == ([], "none")
    for step in (3, 6, 9, 12):
        own.save(step, {"a": torch.full((2,), float(step)), "b": torch.tensor(step)}, {"note": "x"}, best=3)
    own.wait()
    assert own.steps() == [3, 9, 12]
    values = {"a": torch.zeros(2), "b": torch.tensor(0)}
    own.load(9, values)
    assert (values["a"].tolist(), values["b"].item()) == ([9.0, 9.0], 9)
    assert own.record(12) == {"note": "x", "step": 12}


def test_a_checkpoint_is_of_its_moment_however_long_its_writing_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In as many files as it takes; a later one waits for it."""
    monkeypatch.setattr("amp.run.saving.FILE_BYTES", 100)
    write, told, go = TensorWriter._write, Event(), Event()

    def held_up(*given: Any) -> None:
        told.set()
        assert go.wait(60)
        write(*given)

    monkeypatch.setattr(TensorWriter, "_write", held_up)
    own = _checkpoints(tmp_path)
    tensors = {name: torch.full((20,), float(number)) for number, name in enumerate("abcd")}
    own.save(3, tensors, {}, best=0)
    assert told.wait(60)
    for tensor in tensors.values():
        tensor.add_(10)
    own.check()
    assert own.steps() == []
    go.set()
    own.save(6, tensors, {}, best=0)
    assert own.steps()[0] == 3
    own.close()
    assert own.steps() == [3, 6]
    assert len(list(own.path(3).glob("*.safetensors"))) == 4
    for step, first in ((3, 0), (6, 10)):
        read = {name: torch.empty(20) for name in "abcd"}
        own.load(step, read)
        assert [read[name].unique().tolist() for name in "abcd"] == [[first + number] for number in range(4)]


def test_what_ends_a_write_is_told_once_by_the_next_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = _checkpoints(tmp_path)
    _save(own, 3, {"a": torch.zeros(2)})
    message = r"step_0000006 cannot be written \(No space left on device\); last good checkpoint: .*step_0000003; free"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for ask in (own.check, own.wait, lambda: own.save(9, {"a": torch.zeros(2)}, {}, best=0)):
        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "_finish", full)
            own.save(6, {"a": torch.ones(2)}, {}, best=0)
            futures.wait([own._writer._written])  # type: ignore[union-attr, list-item]
        with pytest.raises(StoppedError, match=message):
            ask()
        own.wait()
        assert [path.name for path in own.folder.iterdir()] == ["step_0000003"]


def test_what_is_half_written_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = _checkpoints(tmp_path)
    _save(own, 3, {"a": torch.zeros(2)})
    shutil.copytree(own.path(3), own.folder / ".step_0000006.partial")
    assert own.steps() == [3]
    _save(own, 6, {"a": torch.ones(2)})
    assert sorted(path.name for path in own.folder.iterdir()) == ["step_0000003", "step_0000006"]


def test_an_unreadable_checkpoint_is_named(tmp_path: Path) -> None:
    own = _checkpoints(tmp_path)
    _save(own, 3, {"a": torch.zeros(2)})
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
    _save(old, 3, {"a": torch.zeros(2)})
    same = Checkpoints(Run(None, tmp_path, {"settings": settings, "student_sha256": "a"}), 2)
    assert same.record(3) == {"step": 3}
    _save(same, 6, {"a": torch.zeros(2)})
    other = Checkpoints(Run(None, tmp_path, {"settings": settings, "student_sha256": "b"}), 2)
    assert "step_0000006 was made before the student changed" in refusal(lambda: other.record(6))
    other = Checkpoints(Run(None, tmp_path, {"settings": {"optim": {"epochs": 4}}}), 2)
    assert "step_0000003 was made with optim.epochs = 3, but this run has 4" in refusal(lambda: other.record(3))
