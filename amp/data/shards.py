"""Images in the .tar shards of webdataset, found by an index, so that any order of them can be read from any place.

Streams of shards give an order that depends on who reads them; an index costs one pass over the headers at the start.
"""

import tarfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from webdataset.shardlists import expand_urls

from amp.errors import UserError
from amp.run.console import progress

MIXED_SHARDS = 16


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
            raise OSError("the shard ends before the image does")
        return content


def find_shards(root: str) -> list[str]:
    """Sorted .tar files of a folder, or those of a pattern such as `shards/train-{0000..1023}.tar`.

    Raises:
        UserError: there is none, or one of the pattern's is missing.
    """
    if Path(root).is_dir():
        shards = sorted(str(path) for path in Path(root).glob("*.tar"))
        if not shards:
            raise UserError("data.root", f"{root}: holds no .tar shard")
        return shards
    shards = list(expand_urls(root))
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        raise UserError(
            "data.root",
            f"{missing[0]}: no such shard; give a folder of .tar files or a pattern, for example "
            "data/train-{0000..1023}.tar",
        )
    return shards


def list_members(shards: Sequence[str], extensions: Collection[str]) -> list[Member]:
    """Every image of the shards, in their order. Raises UserError when one is no tar file."""
    with ThreadPoolExecutor(8) as pool:
        found = progress(pool.map(lambda shard: _index(shard, extensions), shards), "index", "shard", len(shards))
        return [member for members in found for member in members]


def _index(shard: str, extensions: Collection[str]) -> list[Member]:
    try:
        with tarfile.open(shard, "r:") as archive:
            return [
                Member(shard, info.name, info.offset_data, info.size)
                for info in archive
                if info.isfile() and Path(info.name).suffix.lower() in extensions
            ]
    except (tarfile.TarError, OSError) as error:
        raise UserError("data.root", f"{shard}: no shard that can be read ({error})") from None


def shuffle_nearby(members: Sequence[Member], generator: torch.Generator) -> list[int]:
    """Indices in a random order that reads few shards at a time: shards shuffled, images within each run of 16."""
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
