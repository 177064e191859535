"""Answers a command without torch: an interpreter in which its import fails, forked for each command.

Reads lines of JSON, `[words, folder]`, and writes for each a line `[code, out, err]`. An interpreter for each command
takes half a second, most of which goes into the imports of the settings; a fork takes a tenth of that.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]


class Answers:
    """The other process, as tests call it."""

    def __init__(self, folder: Path) -> None:
        (folder / "torch.py").write_text("raise AssertionError('torch is imported')")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests")))}
        words = [sys.executable, "-m", "helpers.without_torch"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(words, text=True, env=environment, **pipes)

    def __call__(self, script: str, *words: object) -> subprocess.CompletedProcess[str]:
        """A run that answers without torch, whose import takes seconds; importing it fails."""
        own = [script, *map(str, words)]
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([own, str(ROOT)]), file=self._process.stdin, flush=True)
        return subprocess.CompletedProcess(own, *json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()


def _answer(words: list[str], folder: str) -> list[Any]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            _run(words, folder, out.fileno(), err.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        return [code, out.read(), err.read()]


def _run(words: list[str], folder: str, *console: int) -> NoReturn:
    code: Any = 0
    try:
        for number, file in zip((1, 2), console, strict=True):
            os.dup2(file, number)
        os.chdir(folder)
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, str((ROOT / words[0]).parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(int(code))


if __name__ == "__main__":
    for module in ("amp.commands.distill", "amp.commands.prune", "amp.evaluation.options", "amp.data.pixels"):
        import_module(module)
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), flush=True)
