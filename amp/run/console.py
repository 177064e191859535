"""The console of a run: lines, progress bars, and how a script ends."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from amp.errors import StoppedError, UserError

Item = TypeVar("Item")


SPEAK_SECONDS = 3.0


def run_script(main: Callable[[], None]) -> None:
    """Runs an entry script: the user's mistakes become one line and exit code 2, Ctrl-C exit code 130."""
    try:
        main()
    except UserError as error:
        _end(f"error: {error}", 2, error.rank_local)
    except StoppedError as stop:
        _end(f"stopped: {stop}", stop.code)
    except KeyboardInterrupt:
        if main_process():
            print("interrupted", file=sys.stderr)
        sys.exit(130)


def _end(line: str, code: int, rank_local: bool = False) -> NoReturn:
    """Exits with one line, by the main process: all of a run met the same cause, unless it is this one's alone."""
    if main_process() or rank_local:
        print(line, file=sys.stderr, flush=True)
    else:
        time.sleep(SPEAK_SECONDS)  # torchrun ends all as soon as one has ended.
    sys.exit(code)


def main_process() -> bool:
    """Whether this process speaks for the run, as torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """A line on the console, by the main process, that leaves progress bars whole."""
    if main_process():
        tqdm.write(message)


def warn_here(message: str) -> None:
    """A line on the console by whichever process met the cause."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def progress(
    items: Iterable[Item] | None, description: str, unit: str, total: int | None = None, initial: int = 0
) -> Any:
    """A progress bar with rate and remaining time, shown by the main process. Without items, `update` moves it.

    One that runs within another's is gone when it ends.
    """
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


def reproduce(script: str) -> str:
    """The command line that was typed."""
    return shlex.join(["python", script, *sys.argv[1:]])
