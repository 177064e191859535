"""Processes of a run, as torchrun starts them, but forked from one that has imported the libraries already.

Starting an interpreter and importing torch and open_clip takes six seconds, and a second to end; the tests start some
hundred processes. What a process of these runs is the script alone, from its first line on.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from torch.distributed import TCPStore

ROOT = Path(__file__).parents[2]
LIBRARIES = ["open_clip", "torch.utils.tensorboard", "torch.distributed.checkpoint", "matplotlib.pyplot"]
LIBRARIES += ["sklearn.datasets", "clip_benchmark.datasets.builder", "optimi", "webdataset"]
GRACE_SECONDS = 10
END_SECONDS = 60

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*LIBRARIES, "processes.start"])


def run_processes(
    number: int,
    words: Sequence[str],
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
    launcher: bool = True,
    folder: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """Runs a script on `number` processes; when one fails all end, and the exit code is 1, as torchrun's.

    Args:
        words: the script, or -m and a module, and its arguments.
        environment: instead of this process's own.
        launcher: whether one looks after the processes; without, they meet and end by themselves.
        folder: where they work.
    """
    variables = dict(os.environ if environment is None else environment)
    with tempfile.TemporaryDirectory() as console:
        files = [Path(console) / name for name in ("stdout", "stderr")]
        with started(number, words, variables, files, launcher, folder) as processes:
            code = _wait(processes, timeout, launcher)
        out, err = (path.read_text() if path.exists() else "" for path in files)
    return subprocess.CompletedProcess(list(words), min(abs(code), 1) if number > 1 else code, out, err)


@contextmanager
def started(
    number: int,
    words: Sequence[str],
    variables: Mapping[str, str] | None = None,
    files: Sequence[Path] = (Path(os.devnull),) * 2,
    launcher: bool = True,
    folder: Path = ROOT,
) -> Iterator[list[ForkServerProcess]]:
    """A script on `number` processes, started and not waited for; they must have ended when the block does.

    Args:
        variables: of the environment; None: this process's own.
        files: of their console, stdout and stderr.
        launcher, folder: as of `run_processes`.
    """
    own = dict(os.environ if variables is None else variables)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if number > 1 else None
    port = store.port if store else 0
    if not launcher:
        del store
    processes = []
    for rank in range(number):
        place = _place(rank, number, port, launcher) if number > 1 else {}
        given = (list(words), {**own, **place}, list(files), folder)
        processes.append(_context.Process(target=_script, args=given))
        processes[-1].start()
    yield processes


def start_process(words: Sequence[str]) -> ForkServerProcess:
    """Starts a script on one process, its console lost, and does not wait for it."""
    with started(1, words) as (process,):
        return process


def _place(rank: int, number: int, port: int, launcher: bool) -> dict[str, str]:
    if not launcher:
        return {"RANK": str(rank), "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_PORT": port}
    store = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return {**{name: str(value) for name, value in numbers.items()}, **store}


def _script(words: list[str], environment: dict[str, str], files: list[Path], folder: Path) -> None:
    """In the process of its own, whose exit functions run at its end, as any other's."""
    for number, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers, as in a process of its own
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str((ROOT / words[0]).parent))
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _wait(started: list[ForkServerProcess], timeout: float, launcher: bool) -> int:
    """The exit code of the first to fail, after which the others are ended; 0 where none fails."""
    until = time.monotonic() + timeout
    code = 0
    while running := [process for process in started if process.exitcode is None]:
        connection.wait([process.sentinel for process in running], max(0.0, until - time.monotonic()))
        late = time.monotonic() >= until
        failed = next((process.exitcode for process in started if process.exitcode), 0)
        if failed and not code:
            code, until = failed, time.monotonic() + (GRACE_SECONDS if launcher else END_SECONDS)
            for process in running if launcher else ():
                process.terminate()
        elif late:
            for process in running:
                process.kill()
            if not code:
                raise subprocess.TimeoutExpired("processes", timeout)
    return code or next((process.exitcode for process in started if process.exitcode), 0)
