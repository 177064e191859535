"""One run at a time in a folder."""

import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from amp.errors import UserError
from amp.run.files import remove_left

LOCK = ".lock"


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
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    descriptor = _take(path, key)
    try:
        remove_left(folder)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
        for place in new:
            with suppress(OSError):
                place.rmdir()  # where nothing was written


def _take(path: Path, key: str) -> int:
    """The descriptor of the locked file, which says who holds it. A record lock, since loader workers inherit others."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            held_by = os.pread(descriptor, 4096, 0).decode(errors="replace")
            os.close(descriptor)
            raise UserError(
                key, f"{path.parent} is in use by {_in_words(held_by)}; wait for it to end, or choose another {key}"
            ) from None
        except OSError:
            pass
        if _is_still(path, descriptor):
            break
        os.close(descriptor)
    holder = {"process": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv)}
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
