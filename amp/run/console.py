"""The console of a run: lines, progress, and how a script ends."""

import atexit
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar
from weakref import WeakSet

from tqdm import tqdm

from amp.errors import StoppedError, as_line, one_line
from amp.run.processes.environment import is_one_of_several, speaks
from amp.run.processes.signals import continues, stopped
from amp.settings.verbosity import is_verbose

Item = TypeVar("Item")

SPEAK_SECONDS = 3.0
LINE_SECONDS = 30.0
SHORTEST_SECONDS = 3.0
TENTHS = 10


class _Terminated(BaseException):
    """SIGTERM came. No `except Exception` on the way takes it for a failure of its own."""


def run_script(main: Callable[[], None]) -> None:
    """Runs an entry script. Everything that a user can mend, and SIGTERM (exit code 143), ends it with one line.

    A mistake exits with 2, a stop with work left to do with 1 or 128 + its signal, Ctrl-C with 130. A fault of the
    program keeps its traceback. One of several processes is left at once after its exit functions.
    """
    if not is_one_of_several():
        _run(main)
        return
    code = 0
    try:
        _run(main)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    _leave(code)


def _run(main: Callable[[], None]) -> None:
    asked: list[int] = []
    continues(False)
    try:
        with _terminable() as asked:
            main()
    except _Terminated:
        _end(stopped("stopped: SIGTERM"), 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        if main_process():
            print(stopped("interrupted"), file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # who read it has gone, and the interpreter writes what is left
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if asked:  # Code in C may have made something else of it.
            _end(stopped("stopped: SIGTERM"), 128 + signal.SIGTERM)
        known = as_line(error)
        if known is None:
            raise
        word, code = ("stopped", known.code) if isinstance(known, StoppedError) else ("error", 2)
        _end(f"{word}: {known}", code, known.rank_local)


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """Within the block SIGTERM unwinds what runs, so that nothing half-written stays; gives the signals that came."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def end(number: int, frame: Any) -> None:
        if not asked:  # torchrun sends the same signal once more.
            asked.append(number)
            raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(line: str, code: int, rank_local: bool = False) -> NoReturn:
    """Exits with one line, by the main process: all of a run met the same cause, unless it is this one's alone."""
    if main_process() or rank_local:
        print(line, file=sys.stderr, flush=True)
        _tell_launcher(line)
    else:
        time.sleep(SPEAK_SECONDS)  # torchrun ends all as soon as one has ended.
    sys.exit(code)


def _tell_launcher(line: str) -> None:
    """The line for the summary with which torchrun ends, below a traceback of its own."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": line, "timestamp": str(int(time.time()))}), "utf-8")


def _leave(code: int) -> NoReturn:
    """Ends this process without taking the interpreter apart.

    A thread of gloo that lets go of a tensor meanwhile would abort it ("terminate called without an active exception"):
    it waits for the interpreter, which ends it as no thread of C++ may be ended.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def main_process() -> bool:
    """Whether this process speaks for the run, as torchrun numbers them."""
    return speaks()


def say(message: str) -> None:
    """A line on the console, by the main process, that leaves progress bars whole."""
    if main_process():
        tqdm.write(message)


def detail(message: str) -> None:
    """A line that only those read who ask for it by --verbose."""
    if is_verbose():
        say(message)


def warn_here(message: str) -> None:
    """A line on the console by whichever process met the cause."""
    tqdm.write(f"warning: {one_line(message)}", file=sys.stderr)


_whose: ContextVar[str] = ContextVar("whose", default="")


@contextmanager
def progress_of(whose: str) -> Iterator[None]:
    """Within the block, progress says whose it is: `images (pruned model): 5 of 5 batches`."""
    token = _whose.set(f" ({whose})")
    try:
        yield
    finally:
        _whose.reset(token)


def progress(
    items: Iterable[Item] | None, description: str, unit: str, total: int | None = None, initial: int = 0
) -> Any:
    """Progress with rate and remaining time, told by the main process. Without items, `update` moves it.

    A bar in a terminal, where one that runs within another's is gone when it ends. In a pipe or a file, lines: one at
    every tenth or after half a minute, and fewer of what is short or runs within another.
    """
    description += _whose.get()
    if main_process() and not sys.stderr.isatty():
        return _Lines(items, description, unit, total, initial)
    return tqdm(
        items,
        desc=description,
        unit=unit,
        total=total,
        initial=initial,
        disable=not main_process(),
        dynamic_ncols=True,
        leave=None,
    )


class _Lines:
    """What `progress` gives where a bar would fill a file: as much of tqdm's interface as is used."""

    _open: ClassVar[WeakSet["_Lines"]] = WeakSet()  # A loop that is left by an error is gone, and closes nothing.

    def __init__(
        self, items: Iterable[Any] | None, description: str, unit: str, total: int | None, initial: int
    ) -> None:
        self.items, self.description, self.unit = items, description, unit
        self.total = _length(items) if total is None else total
        self.n = self.initial = self._told = initial
        self._started = self._spoke = 0.0
        self._inner, self._words, self._lines, self._running = False, "", 0, False
        if items is None:
            self._begin()

    def _begin(self) -> None:
        self._started = self._spoke = time.monotonic()
        self._inner, self._running = bool(_Lines._open), True
        _Lines._open.add(self)

    def __iter__(self) -> Iterator[Any]:
        assert self.items is not None
        self._begin()
        try:
            for item in self.items:
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Tells of the progress where a line is due."""
        self.n += n
        since = time.monotonic() - self._spoke
        tenth = self.total and (self.n - self._told) * TENTHS >= self.total
        if since >= LINE_SECONDS or (tenth and since >= SHORTEST_SECONDS and not self._inner):
            self._tell()

    def set_postfix_str(self, words: str = "", refresh: bool = True) -> None:
        """What the next line ends with."""
        self._words = words

    def set_postfix(self, refresh: bool = True, **values: object) -> None:
        """What the next line ends with."""
        self.set_postfix_str(", ".join(f"{key}={value}" for key, value in values.items()))

    def set_description_str(self, description: str = "", refresh: bool = True) -> None:
        """What the next line begins with."""
        self.description = description

    def close(self) -> None:
        """The last line, where there is anything to tell since the one before."""
        if self._running:
            self._running = False
            _Lines._open.discard(self)
            if self.n > self._told and (self._lines or not self._inner):
                self._tell()

    def _tell(self) -> None:
        seconds = time.monotonic() - self._started
        rate = (self.n - self.initial) / seconds if seconds else 0.0
        unit = f"{self.unit}es" if self.unit.endswith("ch") else f"{self.unit}s"
        parts = [f"{self.n:g} {unit}" if self.total is None else f"{self.n:g} of {self.total:g} {unit}"]
        if self.total:
            parts.append(f"{self.n / self.total:.0%}")
        speed = f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"
        parts.append(f"{speed} {unit}/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s/{self.unit}")
        parts.append(f"{tqdm.format_interval(seconds)} elapsed")
        if self.total and rate and self.n < self.total:
            parts.append(f"{tqdm.format_interval((self.total - self.n) / rate)} left")
        print(f"{self.description}: {', '.join([*parts, *filter(None, [self._words])])}", file=sys.stderr, flush=True)
        self._told, self._spoke, self._lines = self.n, time.monotonic(), self._lines + 1


def _length(items: Any) -> int | None:
    try:
        return len(items)
    except TypeError:
        return None


def reproduce(script: str) -> str:
    """The command line that was typed, of a script or, where it was called so, of the command `amp`."""
    return shlex.join([*(sys.argv[0].split() if _is_command() else ("python", script)), *sys.argv[1:]])


def called(command: str) -> str:
    """What a user knows `amp score` or `amp prune` by: that name where `amp` was called, else the script's."""
    return f"amp {command}" if _is_command() else f"main_{command}.py"


def _is_command() -> bool:
    return sys.argv[0].startswith("amp ")
