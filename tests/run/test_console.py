"""Laws of the console: how a script ends, and progress that fills no file."""

import argparse
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from amp.errors import StoppedError, UserError, shortened
from amp.run import console
from amp.run.console import detail, progress, progress_of, run_script
from amp.run.processes.signals import continues
from amp.settings.base import Parser


def _end(main: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    return int(ended.value.code or 0), capsys.readouterr().err


def _raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a", "b"), 2, "error: a: b"),
        (UserError("a\nb.png", "c"), 2, "error: a\\nb.png: c"),
        (StoppedError("c", 143), 143, "stopped: c"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/prune.json"),
            1,
            "stopped: out/prune.json cannot be written (No space left on device); "
            "free disk space, then run the same command to continue",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            1,
            "stopped: a file cannot be written (Disk quota exceeded); free disk space, then run the same command to "
            "continue",
        ),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            1,
            "stopped: a file cannot be written (No space left on device); free disk space, then run the same "
            "command to continue",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "a.png"),
            1,
            "stopped: a.png cannot be opened (Too many open files); raise `ulimit -n`, then run the same command to "
            "continue",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "a.yaml"), 2, "error: a.yaml: permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "prune.png"), 2, "error: prune.png: is a directory"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "error: a/b: not a directory"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), 2, "error: a: no such file or directory"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), 2, "error: aaa: file name too long"),
        (MemoryError(), 1, "stopped: out of memory (MemoryError); use a smaller batch"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            1,
            "stopped: out of memory (CUDA out of memory. Tried to allocate 2 GiB); use a smaller batch",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _end(_raising(error), capsys) == (code, f"{line}\n")


@pytest.mark.parametrize("error", [RuntimeError("shapes"), TypeError("x"), KeyError("y"), OSError("no number")])
def test_a_fault_of_the_program_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_script(_raising(error))


def test_a_stop_from_outside_unwinds_and_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    undone = []

    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except Exception:
            undone.append("taken for a failure")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # torchrun repeats itself
            undone.append("undone")

    before = signal.getsignal(signal.SIGTERM)
    code, line = _end(main, capsys)
    assert (code, line) == (143, "stopped: SIGTERM\n")
    assert undone == ["undone"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stop_says_that_the_run_can_be_continued_where_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        continues()
        raise KeyboardInterrupt

    told = "interrupted; run the same command to continue from what is saved\n"
    assert _end(main, capsys) == (130, told)
    assert _end(_raising(KeyboardInterrupt()), capsys) == (130, "interrupted\n")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    err = capsys.readouterr().err
    assert "\r" not in err
    return err.splitlines()


def test_progress_in_a_file_is_a_line_a_tenth(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(1000), "score", "batch"):
        clock[0] += 0.125
    lines = _lines(capsys)
    assert len(lines) == 10
    assert lines[2] == "score: 300 of 1000 batches, 30%, 8 batches/s, 00:37 elapsed, 01:27 left"
    assert lines[-1] == "score: 1000 of 1000 batches, 100%, 8 batches/s, 02:05 elapsed"


def test_progress_that_is_slow_speaks_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress(None, "distil", "step", total=1000, initial=400) as bar:
        for _ in range(10):
            clock[0] += 10
            bar.set_postfix_str("loss 1")
            bar.update()
    lines = _lines(capsys)
    assert len(lines) == 4
    assert lines[0] == "distil: 403 of 1000 steps, 40%, 10 s/step, 00:30 elapsed, 1:39:30 left, loss 1"


def test_short_loops_and_loops_within_loops_do_not_flood(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in progress(range(5), "outer", "cell"):
        for _ in progress((i for i in range(100)), "inner", "batch", total=100):
            clock[0] += 0.02
    assert [line.partition(":")[0] for line in _lines(capsys)] == ["outer"] * 3
    for _ in progress(range(100), "short", "batch"):
        clock[0] += 0.02
    assert len(_lines(capsys)) == 1


def test_progress_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of("dense model"):
        list(progress(range(3), "images", "batch"))
    list(progress(range(3), "images", "batch"))
    assert [line.partition(":")[0] for line in _lines(capsys)] == ["images (dense model)", "images"]


def test_details_are_told_to_those_who_ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AMP_VERBOSE", "0")  # and so it is again when this test is done
    detail("a detail")
    assert Parser().parse_args(["--verbose"]) == argparse.Namespace()
    detail("another")
    assert capsys.readouterr().out == "another\n"


def test_progress_in_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = progress(range(3), "score", "batch")
    assert list(bar) == [0, 1, 2]
    assert hasattr(bar, "format_dict")


@pytest.mark.parametrize(
    ("text", "limit", "short"),
    [
        ("one two three", 20, "one two three"),
        ("one\n  two\tthree", 20, "one two three"),
        ("one two three", 9, "one two ..."),
        ("one, two three", 6, "one ..."),
        ("a" * 30, 10, "a" * 30 + " ..."),
        ("a" * 300, 10, "a" * 50 + " ..."),
        ("a\x00b", 10, "a\\x00b"),
    ],
)
def test_texts_are_cut_between_words(text: str, limit: int, short: str) -> None:
    assert shortened(text, limit) == short


def test_torchruns_report_ends_with_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(SystemExit):
        run_script(_raising(UserError("--steps", "0 is less than 1")))
    assert json.loads(file.read_text())["message"] == "error: --steps: 0 is less than 1"
