"""Images in the .tar shards of webdataset, found by an index, so that any order of them can be read from any place.

Streams of shards give an order that depends on who reads them; an index costs one pass over the headers at the start.
"""

import math
import posixpath
import re
import tarfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from amp.data.files import is_litter
from amp.errors import UserError
from amp.run.console import progress

if TYPE_CHECKING:
    import torch

MIXED_SHARDS = 16
MOST_SHARDS = 10**6
Item = TypeVar("Item")
_FIRST = ("webp", "png", "jpg", "jpeg")


class Member(NamedTuple):
    """One image's bytes in a shard; as text `shard.tar/name`."""

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        """Raises OSError when the shard is gone or shorter than it was."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError("the shard ends inside the image")
        return content


def find_shards(root: str) -> list[str]:
    """Sorted .tar files of a folder, or those of a pattern such as `shards/train-{0000..1023}.tar`.

    Raises:
        UserError: there is none, or one of the pattern's is missing.
    """
    if Path(root).is_dir():
        shards = sorted(str(path) for path in Path(root).glob("*.tar") if not is_litter(path.name))
        if not shards:
            raise UserError("data.root", f"{root}: holds no shard (.tar file)")
        return shards
    shards = _expanded(root)
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        raise UserError(
            "data.root",
            f"{missing[0]}: no such shard; give a folder of .tar files or a pattern, for example "
            "data/train-{0000..1023}.tar",
        )
    return shards


class Sample(NamedTuple):
    """Neighbouring members of a shard whose names agree up to the first dot: `a/1.jpg`, `a/1.cls`, `a/1.seg.png`.

    Attributes:
        key: shard and name up to the dot, for messages.
        fields: members by what follows the dot, in lower case: `jpg`, `cls`, `seg.png`.
    """

    key: str
    fields: dict[str, Member]

    def image(self, extensions: Collection[str], key: str = "data.root") -> Member | None:
        """The sample's image: webp, png, jpg or jpeg, in this order, as in clip_benchmark, or else its first of another
        kind; None where it has none.

        Raises:
            UserError: there is none, but an image of another name, such as `1.seg.png` or `1.v2.jpg`.
        """
        plain = [field for field in self.fields if f".{field}" in extensions]
        for field in (*(field for field in _FIRST if field in plain), *plain):
            return self.fields[field]
        for field, member in self.fields.items():
            if Path(field).suffix in extensions:
                raise UserError(
                    key,
                    f"{member}: is the field {field!r} of a sample without an image; the name of a sample ends at the "
                    "first dot: rename the file",
                )
        return None


def _expanded(pattern: str) -> list[str]:
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)
    if math.prod(abs(int(last[:20]) - int(first[:20])) + 1 for first, last in ranges) > MOST_SHARDS:
        raise UserError("data.root", f"{pattern}: the pattern stands for more than {MOST_SHARDS} shards")
    from webdataset.shardlists import expand_urls

    try:
        return list(expand_urls(pattern))
    except ValueError:
        raise UserError("data.root", f"{pattern}: the pattern has an unclosed brace or an invalid range") from None


def list_members(shards: Sequence[str], extensions: Collection[str]) -> list[Member]:
    """The image of every sample of the shards, in their order. Raises UserError when one is damaged or no tar file."""

    def images(shard: str) -> list[Member]:
        found = (sample.image(extensions) for sample in _index(shard, "data.root"))
        return [image for image in found if image is not None]

    return _of_all(shards, images)


def list_samples(shards: Sequence[str], key: str) -> list[Sample]:
    """Every sample of the shards, in their order; hidden files and other litter are left out.

    Args:
        key: of the setting or option that named the shards, for messages.
    Raises:
        UserError: one is no tar file, is cut or damaged, or holds a link to what it does not hold.
    """
    return _of_all(shards, lambda shard: _index(shard, key))


def _of_all(shards: Sequence[str], read: Callable[[str], list[Item]]) -> list[Item]:
    with ThreadPoolExecutor(8) as pool:
        return [item for found in progress(pool.map(read, shards), "index", "shard", len(shards)) for item in found]


def _index(shard: str, key: str) -> list[Sample]:
    members: dict[str, Member] = {}  # by the names that links use
    links: list[tuple[int, str, str]] = []
    named: list[Member | None] = []  # in the order of the archive
    last = ""
    try:
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                last = info.name
                if info.issparse():
                    raise UserError(key, f"{shard}: {last} is a sparse file; write the shard again without it")
                if info.islnk() or info.issym():
                    target = info.linkname if info.islnk() else posixpath.join(posixpath.dirname(last), info.linkname)
                    links.append((len(named), last, posixpath.normpath(target)))
                    named.append(None)
                elif info.isreg():
                    member = Member(shard, last, info.offset_data, info.size)
                    members[posixpath.normpath(last)] = member
                    named.append(member)
            end = archive.offset
        _check_end(shard, end)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        fault = f"truncated or damaged at or after {last}" if last else "not a readable shard"
        raise UserError(key, f"{shard}: {fault} ({error}); download or write it again") from None
    targets = {posixpath.normpath(name): target for _, name, target in links}
    for place, name, target in links:
        for _ in links:
            target = targets.get(target, target)
        if target in members:
            named[place] = members[target]._replace(name=name)
        elif not is_litter(name):
            raise UserError(key, f"{shard}: {name} links to {target}, which is not in the shard")
    return _group(shard, [member for member in named if member is not None and not is_litter(member.name)])


def _check_end(shard: str, end: int) -> None:
    """Raises ValueError unless zeros follow the last member, at least the block of them that ends an archive."""
    with open(shard, "rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        if not block:
            raise ValueError("the shard is truncated: its end mark is missing")
        while block:
            if block.strip(b"\0"):
                raise ValueError("unexpected data after the last member")
            block = file.read(2**20)


def _group(shard: str, members: list[Member]) -> list[Sample]:
    samples: list[Sample] = []
    for member in members:
        folder, base = posixpath.split(member.name)
        stem, _, field = base.partition(".")
        key = f"{shard}/{posixpath.join(folder, stem)}"
        if not samples or samples[-1].key != key or field.lower() in samples[-1].fields:
            samples.append(Sample(key, {}))
        samples[-1].fields[field.lower()] = member
    return samples


def shuffle_nearby(members: Sequence[Member], generator: "torch.Generator") -> list[int]:
    """Indices in a random order that reads few shards at a time: shards shuffled, images within each run of 16."""
    import torch

    by_shard: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        by_shard.setdefault(member.shard, []).append(index)
    shards = list(by_shard.values())
    order = torch.randperm(len(shards), generator=generator).tolist()
    indices: list[int] = []
    for first in range(0, len(order), MIXED_SHARDS):
        run = [index for shard in order[first : first + MIXED_SHARDS] for index in shards[shard]]
        indices += [run[i] for i in torch.randperm(len(run), generator=generator).tolist()]
    return indices
