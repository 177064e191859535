"""Files of a run: written beside and renamed, read with one line for what is wrong."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from amp.errors import StoppedError, UserError, under


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
    """Around the writing of `path`, by the one process that writes it: a full disk is one line, no traceback.

    What killed runs have left of it is removed first.
    """
    try:
        for left in path.parent.glob(f".{path.name}.*.partial"):
            _remove(left)
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


def append_line(path: Path, value: Any) -> None:
    """A line of JSON, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, take: Callable[[int, Any], None], advice: str) -> None:
    """Hands the lines of a file of JSON to `take`, numbered from 0; drops a last one that was not written to its end.

    Args:
        take: raises ValueError, KeyError, TypeError or AttributeError where a line is not as it should be; a UserError
            of its own, of a file that is another run's for example, leaves the file as it is.
        advice: what to do about a damaged file.
    Raises:
        UserError: a line before the last one is damaged, or there is none.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    for number, line in enumerate(whole.splitlines() or [""]):
        try:
            take(number, json.loads(line))
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(path, f"line {number + 1} is damaged ({error}); {advice}") from None
    if len(whole) < len(text):
        os.truncate(path, len(whole.encode()))


def prepare_output(folder: str) -> Path:
    """The run's folder, not left behind where it is new. Raises UserError when it cannot be written to."""
    path = Path(folder)
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError("output.dir", f"{folder}: cannot be written to ({error.strerror})") from None
    finally:
        for parent in missing:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    return path


def check_writable(key: str, file: str) -> Path:
    """`file` as a path. Raises UserError when `key` names a file that could not be written."""
    path = Path(file)
    if path.is_dir():
        raise UserError(key, f"{file}: is a folder; give the name of a file")
    with under(key, instead_of="output.dir"):
        prepare_output(str(path.parent))
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(path, f"cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise UserError(path, "expected a JSON object")
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
