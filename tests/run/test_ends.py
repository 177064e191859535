"""Laws of the end: when one process of a run ends, all do, and those that are left say which it was and why."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest
from conftest import ROOT, refusal
from processes.start import run_processes, start_process

from amp.errors import StoppedError, UserError
from amp.run import console
from amp.run.console import run_script
from amp.run.processes.environment import Place
from amp.run.processes.together import Process, join

pytestmark = pytest.mark.slow
SCORE, SEARCH = "amp.run.world:World.gather", "amp.run.world:World.gather"
STEP, CHECKPOINT = "amp.distillation.trainer:Trainer.train_step", "amp.run.saving:TensorWriter._write"


def _raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def _ended(number: int, launcher: bool, *words: object) -> str:
    """What is said by a run one of whose processes ends."""
    script = ["tests/processes/ended_at.py", *map(str, words)]
    started = time.monotonic()
    done = run_processes(number, script, timeout=120, launcher=launcher)
    assert done.returncode == 1
    assert time.monotonic() - started < 100
    return done.stderr


@pytest.mark.parametrize("launcher", [True, False])
@pytest.mark.parametrize(
    ("number", "place", "call", "rank", "how"),
    [(2, SCORE, 2, 1, "kill"), (2, SCORE, 2, 0, "kill"), (3, SCORE, 2, 2, "raise")],
)
def test_the_others_of_a_scoring_say_which_ended(
    number: int, place: str, call: int, rank: int, how: str, launcher: bool, prune_yaml: Path
) -> None:
    words = ["main_score.py", "--config_file", prune_yaml, "--set", "data.batch_size=12"]
    err = _ended(number, launcher, place, call, rank, how, *words)
    lines = [line for line in err.splitlines() if line.startswith("stopped: process")]
    for line in lines:
        assert "run the same command to continue from what is saved" in line
    if launcher:  # It ends the others too, which may be before they know.
        assert lines or "stopped: SIGTERM" in err or rank == 0
    else:
        assert len(lines) == number - 1
        assert any(f"process {rank} has ended" in line for line in lines)
    if how == "raise":
        assert "KeyError: 'a fault of the program'" in err


@pytest.mark.parametrize(
    ("place", "call", "rank", "words"),
    [(STEP, 4, 1, []), (STEP, 4, 0, ["optim.parallel=fsdp"]), (CHECKPOINT, 2, 1, ["output.save_every=2"])],
)
def test_the_other_of_a_distillation_says_it(
    place: str, call: int, rank: int, words: list[str], distill_yaml: Path
) -> None:
    settings = [part for word in words for part in ("--set", word)]
    err = _ended(2, False, place, call, rank, "kill", "distill.py", "--config_file", distill_yaml, *settings)
    assert f"stopped: process {1 - rank} of 2: process {rank} has ended" in err
    assert "Traceback" not in err


def test_the_other_of_a_search_says_it(prune_yaml: Path, scored: Path) -> None:
    words = ["main_prune.py", "--config_file", prune_yaml]
    err = _ended(2, False, SEARCH, 5, 1, "refuse", *words)
    assert "error: data.root: an image of this process alone is broken" in err
    assert "process 0 of 2: process 1 has ended (data.root: an image of this process alone is broken)" in err


def test_a_process_that_comes_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from amp.run.processes import together

    monkeypatch.setattr(together, "JOIN", together.timedelta(seconds=1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    place = Place(1, 2, 1, 2, "127.0.0.1", 1)
    message = refusal(lambda: join(place, torch.device("cpu")))
    assert message.startswith(
        "MASTER_ADDR, MASTER_PORT: process 1 could not connect to the other processes (WORLD_SIZE 2)"
    )


def test_a_process_of_several_ends_whole_whatever_thread_is_left(tmp_path: Path) -> None:
    """Of an interpreter of its own, which is what would be taken apart."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/processes/thread_left.py", str(tmp_path)]
    other, own = (
        subprocess.Popen(command, env=os.environ | place | {"RANK": rank}, stdout=PIPE, stderr=PIPE, text=True)
        for rank in "01"
    )
    out, err = own.communicate(timeout=120)
    assert (own.returncode, err) == (0, "")
    assert out.splitlines() == ["written", "exit functions have run"]
    other.communicate(timeout=120)


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        (lambda: None, 0, ""),
        (lambda: sys.exit(3), 3, ""),
        (_raising(UserError("a", "b")), 2, "error: a: b"),
        (_raising(StoppedError("c", 143)), 143, "stopped: c"),
        (_raising(KeyboardInterrupt()), 130, "interrupted"),
        (_raising(KeyError("a fault")), 1, "KeyError: 'a fault'"),
    ],
)
def test_every_end_of_several_is_left_at_once(
    end: Callable[[], None], code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_leave", lambda code: sys.exit(f"left with {code}"))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"left with {code}"):
        run_script(end)
    assert says in capsys.readouterr().err


def test_whether_a_process_has_ended_is_known() -> None:
    own = Process.own()
    assert not own.has_ended()
    pid = os.fork()
    if not pid:
        os._exit(0)
    time.sleep(0.2)
    assert own._replace(number=pid).has_ended()  # not waited for yet
    os.waitpid(pid, 0)
    assert own._replace(number=pid).has_ended()
    assert not Process("elsewhere", pid).has_ended()


def test_a_process_of_a_queue_ends_at_once(prune_yaml: Path) -> None:
    process = start_process(["main_score.py", "--config_file", str(prune_yaml)])
    time.sleep(3)
    process.terminate()
    process.join(30)
    assert process.exitcode in (0, 143)
