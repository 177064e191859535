"""What data a run reads, as one digest: of the files' names, sizes and times, not of their bytes."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from amp.data.files import walk
from amp.data.layouts import Source
from amp.data.shards import Member

_AT_ONCE = 16  # files asked for at the same time: network file systems answer late
_RUN = 512


def data_digests(sources: Sequence[Source], root: str | Path) -> tuple[str, str]:
    """The sha256, in hexadecimal, of which images these are, in their order: without the times of the files, and with
    them.

    Of a file: its name relative to `root`, its size in bytes and its time of modification in ns. Of members of a shard:
    that of the shard, and the name, place and size of each member. A folder that is moved or copied with its times
    (`cp -a`, `rsync -a`) keeps its digest; a file that is replaced, added, removed or touched changes it. One `stat` of
    each file or shard; nothing is opened. The same in every process.

    Args:
        sources: as of `amp.data.listing.Listing.images`.
        root: their folder, or the pattern of shards. What does not lie below it counts by its absolute path.
    """
    runs = [(file, list(members)) for file, members in groupby(sources, _file)]
    names, with_times = hashlib.sha256(), hashlib.sha256()
    for (name, size, time), (_, members) in zip(_facts([file for file, _ in runs], _base(root)), runs, strict=True):
        names.update(_record(name, size))
        with_times.update(_record(name, size, time))
        for member in members:
            if isinstance(member, Member):
                for digest in (names, with_times):
                    digest.update(_record(member.name, member.offset, member.size))
    return names.hexdigest(), with_times.hexdigest()


def folder_digest(root: str | Path, key: str = "--dataset_root") -> str:
    """The sha256, in hexadecimal, of the names, sizes and times of all files below a folder, or of one file.

    As `data_digests` of a folder's files, in sorted order. Hidden files, and `meta.bin`, which torchvision writes into
    a folder of ImageNet when it first reads it, do not count. What evaluation builds where it is missing (digit scenes)
    must be there before.

    Args:
        key: of the option that named the folder, for messages.
    Raises:
        UserError: the folder, or one below it, cannot be read.
    """
    root = Path(root)
    files = [str(root)] if root.is_file() else sorted(str(p) for p in walk(root, key) if p.name != "meta.bin")
    digest = hashlib.sha256()
    for facts in _facts(files, str(root if root.is_dir() else root.parent)):
        digest.update(_record(*facts))
    return digest.hexdigest()


def _file(source: Source) -> str:
    return source.shard if isinstance(source, Member) else str(source)


def _base(root: str | Path) -> str:
    return str(root if Path(root).is_dir() else Path(root).parent)


def _facts(files: Sequence[str], base: str) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of each file, in order."""
    parts = [files[first : first + _RUN] for first in range(0, len(files), _RUN)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for facts in pool.map(lambda part: _stat(part, base), parts):
            yield from facts


def _stat(files: Iterable[str], base: str) -> list[tuple[str, int, int]]:
    prefix, facts = os.path.join(base, ""), []
    for file in files:
        name = file[len(prefix) :] if file.startswith(prefix) else os.path.abspath(file)
        try:
            found = os.stat(file)
        except OSError:  # gone since it was listed; reading it says so
            facts.append((name, -1, -1))
        else:
            facts.append((name, found.st_size, found.st_mtime_ns))
    return facts


def _record(name: str, *numbers: int) -> bytes:
    """Unambiguous, since no name holds a NUL."""
    return os.fsencode(name) + "".join(f"\0{number}" for number in numbers).encode() + b"\0\n"
