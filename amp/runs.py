"""A run's folder, console, progress bars and atomic writes."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel
from safetensors import SafetensorError
from tqdm import tqdm

from amp.errors import StoppedError, UserError

Item = TypeVar("Item")
SPEAK_SECONDS = 3.0
INSIST_SECONDS = 5.0
STOPS = (signal.SIGTERM, signal.SIGINT)
# Settings that leave a run's result as it is, up to rounding.
READING = {"num_workers", "max_broken"}
STORING = {"store", "store_every"}
WORKING = {"parallel", "accumulate", "activation_checkpointing", "compile", "step_in_backward"}
DIVIDING = {"micro_batch", "save_every"}


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


@dataclass
class StopRequest:
    """Whether a queue (SIGTERM) or Ctrl-C (SIGINT) has asked this process to stop."""

    number: int = 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block SIGTERM and SIGINT are noted, to be obeyed between two steps; a later Ctrl-C stops at once."""
    request, noted = StopRequest(), 0.0

    def note(number: int, frame: Any) -> None:
        nonlocal noted
        # torchrun sends the same signal once more; people wait before they insist.
        if number == signal.SIGINT and request.number and time.monotonic() - noted > INSIST_SECONDS:
            raise KeyboardInterrupt
        request.number, noted = request.number or number, noted or time.monotonic()

    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or folder at; renamed to `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(partial)  # of a killed run: in a container the next one has the same process id
    try:
        yield partial
        if partial.is_dir() and path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.old") as old:
                path.rename(Path(old) / path.name)
                partial.rename(path)
        else:
            partial.replace(path)
    finally:
        _remove(partial)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Around the writing of `path`: a full disk is one line instead of a traceback."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        advice = "make room, then the same command goes on from the last checkpoint"
        raise StoppedError(f"{path} cannot be written ({reason}); {advice}") from None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, written beside and renamed."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def prepare_output(folder: str) -> Path:
    """The run's folder, not left behind where it is new. Raises UserError when it cannot be written to."""
    path = Path(folder)
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"output.dir: {folder}: cannot be written to ({error.strerror})") from None
    finally:
        for parent in missing:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    return path


def check_same_run(artifact: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError naming the first setting in which `artifact` was made by another run."""
    difference = first_difference(recorded, wanted)
    if difference:
        key, old, new = difference
        raise UserError(
            f"output.dir: {artifact.parent} holds another run: {artifact.name} was made with {key} = {old!r}, "
            f"asked for {new!r}; choose another output.dir or delete {artifact}"
        )


def first_difference(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(key, recorded value, wanted value) of the first setting, or weights digest, in which two runs differ."""
    old, new = (
        _flatten({"settings": r.get("settings", {}), "pretrained_sha256": r.get("pretrained_sha256")})
        for r in (recorded, wanted)
    )
    for key in [*new, *(k for k in old if k not in new)]:
        if old.get(key) != new.get(key):
            return key.removeprefix("settings."), old.get(key), new.get(key)
    return None


def describe(config: BaseModel, pretrained: str | None, leave_out: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """What decides a run's result, for its artifacts: settings, digest of the weights file, versions.

    Left out: where the output goes, how the images are read, where blocks' inputs are kept, and how the work of a step
    is divided.
    """
    exclude: Any = {"output": True, "data": READING, "score": DIVIDING, "prune": STORING, "optim": WORKING}
    settings = config.model_dump(mode="json", exclude={**exclude, **dict.fromkeys(leave_out, True)})
    return {
        "settings": settings,
        "pretrained_sha256": file_sha256(pretrained),
        **more,
        "versions": {
            name: version(name) for name in ("torch", "torchvision", "open_clip_torch", "timm", "transformers")
        },
    }


def recorded_frame(record: Mapping[str, Any]) -> Any:
    """The frame that a run's record names; None where it names none."""
    try:
        return record["settings"]["model"]["frame"]
    except (KeyError, TypeError):
        return None


def reproduce(script: str) -> str:
    """The command line that was typed."""
    return shlex.join(["python", script, *sys.argv[1:]])


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def file_sha256(path: str | None) -> str | None:
    """Hex digest of a local file's bytes, or of a folder's safetensors; None for a library's tag or no weights."""
    if path is None or not Path(path).exists():
        return None
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [Path(path)]
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return "+".join(digests) or None


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
