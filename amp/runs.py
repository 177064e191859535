"""A run's folder, console, progress bars and atomic writes."""

import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from tqdm import tqdm

from amp.errors import UserError

Item = TypeVar("Item")
SPEAK_SECONDS = 3.0
STORING = {"store", "store_every"}
DIVIDING = {"micro_batch"}


def run_script(main: Callable[[], None]) -> None:
    """Runs an entry script: the user's mistakes become one line and exit code 2, Ctrl-C exit code 130."""
    try:
        main()
    except UserError as error:
        # All processes of a run read the same settings; one of them says what is wrong with them. The others give it
        # time: torchrun ends all as soon as one has ended.
        if main_process() or error.rank_local:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(SPEAK_SECONDS)
        sys.exit(2)
    except KeyboardInterrupt:
        if main_process():
            print("interrupted", file=sys.stderr)
        sys.exit(130)


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
    """A progress bar with rate and remaining time, shown by the main process. Without items, `update` moves it."""
    return tqdm(
        items,
        desc=description,
        unit=unit,
        total=total,
        initial=initial,
        disable=not main_process(),
        dynamic_ncols=True,
        leave=True,
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

    Left out: where the output goes, how many workers read the images, what only divides the work or places it.
    """
    exclude: Any = {
        "output": True,
        "data": {"num_workers"},
        "prune": STORING,
        "score": DIVIDING,
        **dict.fromkeys(leave_out, True),
    }
    settings = config.model_dump(mode="json", exclude=exclude)
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
