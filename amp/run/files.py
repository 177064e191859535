"""A run's files and folder: written beside and renamed, checked before the work, held by one run at a time."""

import fcntl
import glob
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from safetensors import SafetensorError

from amp.errors import UserError, as_line
from amp.run.processes.environment import speaks

LOCK = ".lock"
SCORES = "scores.safetensors"  # Written by a scoring, read by the prunings of its folder.
HEAD_SCORES = "head_scores.safetensors"
PRUNE_RECORD = "prune.json"
CONFIG, BESIDE = "config.json", "amp.json"  # by which a folder describes its model
MODEL = "model.safetensors"
READ = 64 << 20  # bytes, of which a digest takes so long that the interpreter is free for others meanwhile


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or folder at; renamed to `path` when the block ends well."""
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(partial)  # of a killed run: in a container the next one has the same process id
    try:
        yield partial
        if partial.is_dir() and path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.old") as old:
                before = path.rename(Path(old) / path.name)
                partial.rename(path)
                for left in before.iterdir() if before.is_dir() else ():
                    if not (path / left.name).exists():
                        left.rename(path / left.name)  # somebody put it there
        else:
            partial.replace(path)
    finally:
        _remove(partial)


@contextmanager
def atomic_together(*paths: Path) -> Iterator[Path]:
    """A folder beside `paths` to write files of their names in; they are renamed to them when the block ends well.

    In the order of `paths`, so that the last one is there when all are. Of a file that the block does not write, what
    an earlier one left goes.

    Args:
        paths: files of one folder.
    """
    *others, last = paths
    last.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(last)
    folder = last.with_name(f".{last.name}.{os.getpid()}.partial")
    _remove(folder)
    folder.mkdir()
    try:
        yield folder
        for path in (*others, last):
            written = folder / path.name
            written.replace(path) if written.exists() else path.unlink(missing_ok=True)
    finally:
        _remove(folder)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Around the writing of `path`: a full disk is one line, no traceback."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        line = as_line(error, path)
        if line is None:
            raise
        raise line from None


def remove_left(folder: Path) -> None:
    """Removes what killed runs have left in a run's folder; nobody else may be writing there."""
    for pattern in (".*.partial", ".*.old*"):
        for left in folder.glob(pattern):
            _remove(left)


def _remove_left(path: Path) -> None:
    """Removes what processes that are gone have left of `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        number = left.name.removesuffix(".partial").rpartition(".")[2]
        if not (number.isdigit() and Path("/proc", number).exists()):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def is_described(folder: Path) -> bool:
    """Whether a folder holds a description of a model."""
    return any((folder / name).is_file() for name in (CONFIG, BESIDE))


def model_files(folder: str) -> tuple[str, str]:
    """What a folder that holds a model must have, as `Run.done` takes it."""
    return f"{folder}/{CONFIG}", f"{folder}/{MODEL}"


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """The folder is there; what is new of it and of those above it goes at the end, where nothing was written."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in new:
            with suppress(OSError):
                place.rmdir()


@contextmanager
def alone_in(folder: Path, key: str = "output.dir") -> Iterator[None]:
    """Within the block, this process is the only one that writes into `folder`, which is made where it is missing.

    What killed runs have left there is removed. The lock goes with its process, however that ends. File systems that
    know no locks are used without.

    Args:
        key: the setting or option that chose the folder.
    Raises:
        UserError: another run holds it; says which.
    """
    path = folder / LOCK
    with made(folder):
        descriptor = _take(path, key)
        try:
            remove_left(folder)
            yield
        finally:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _take(path: Path, key: str) -> int:
    """The descriptor of the locked file, which says who holds it: a record lock, for loader workers inherit others."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            held_by = os.pread(descriptor, 4096, 0).decode(errors="replace")
            os.close(descriptor)
            raise UserError(
                key, f"{path.parent} is in use by {_in_words(held_by)}; wait for it to end, or choose another folder"
            ) from None
        except OSError:
            pass
        if _is_still(path, descriptor):
            break
        os.close(descriptor)
    holder = {"process": os.getpid(), "host": socket.gethostname(), "command": shlex.join(map(str, sys.argv))}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({**holder, "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}).encode(), 0)
    return descriptor


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the name is that of the open file, which its last holder may have removed in between."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _in_words(text: str) -> str:
    try:
        holder = json.loads(text)
        return "process {process} on {host} since {since} ({command})".format(**holder)
    except (ValueError, KeyError, TypeError):
        return "another run"


def json_sha256(value: object) -> str:
    """Hex digest that tells one JSON value from another."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: str | None) -> str | None:
    """Hex digest of a local file's bytes, or of a folder's weights; None for a library's tag or no weights.

    Raises:
        UserError: it cannot be read.
    """
    if path is None or not Path(path).exists():
        return None
    own = Path(path)
    return "+".join(_digests(own, ("*.safetensors", "*.bin") if own.is_dir() else ())) or None


def begin_sha256(path: str | Path | None) -> None:
    """Begins to read a local file for its `file_sha256`, beside what runs now; whoever asks for that next takes it."""
    if path is not None and speaks() and Path(path).is_file():
        promise: Future[str] = Future()
        _BEGUN[_state(Path(path))] = promise
        threading.Thread(target=_fulfil, args=(promise, Path(path)), daemon=True).start()


_BEGUN: dict[tuple[object, ...], "Future[str]"] = {}


def _state(file: Path) -> tuple[object, ...]:
    own = file.stat()
    return str(file.resolve()), own.st_ino, own.st_size, own.st_mtime_ns


def _fulfil(promise: "Future[str]", file: Path) -> None:
    try:
        promise.set_result(_digest(file))
    except Exception as error:
        promise.set_exception(error)


def _digest(file: Path) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(min(READ, file.stat().st_size + 1)))
    with file.open("rb", buffering=0) as opened:
        while size := opened.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def texts_sha256(path: str) -> str | None:
    """Hex digest of the bytes of a local file, or of a folder's JSON and text files; None for a library's name.

    Raises:
        UserError: one cannot be read.
    """
    own = Path(path)
    if not own.exists():
        return None
    digests = _digests(own, ("*.json", "*.txt", "*.model") if own.is_dir() else ())
    return hashlib.sha256("+".join(digests).encode()).hexdigest() if own.is_dir() else "+".join(digests)


def _digests(path: Path, patterns: Sequence[str]) -> list[str]:
    """Of a file, or of a folder's files of these patterns, sorted."""
    digests = []
    try:
        for file in sorted(file for pattern in patterns for file in path.glob(pattern)) if patterns else [path]:
            begun = _BEGUN.pop(_state(file), None)
            digests.append(begun.result() if begun else _digest(file))
    except OSError as error:
        raise UserError(error.filename or path, f"cannot be read ({error.strerror})") from None
    return digests
