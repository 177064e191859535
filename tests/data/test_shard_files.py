"""Laws of a shard's file: every member of it counts, or the shard is refused by name."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from PIL import Image

from amp.data.pixels import EXTENSIONS
from amp.data.shards import Member, find_shards, list_members


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def write(path: Path, *names: str | tarfile.TarInfo) -> Path:
    """A shard whose members, but links, are images of their place in it."""
    with tarfile.open(path, "w") as archive:
        for number, name in enumerate(names):
            if isinstance(name, tarfile.TarInfo):
                archive.addfile(name)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(png(number))
            archive.addfile(info, io.BytesIO(png(number)))
    return path


def members(path: Path) -> list[Member]:
    return list_members([str(path)], EXTENSIONS)


def names(path: Path) -> list[str]:
    return [member.name for member in members(path)]


def cut_at_a_border(content: bytearray, third: int) -> bytearray:
    return content[:third]


def damage_the_header(content: bytearray, third: int) -> bytearray:
    content[third + 4] ^= 1
    return content


def cut_in_a_header(content: bytearray, third: int) -> bytearray:
    return content[: third + 100]


def put_another_after_it(content: bytearray, _: int) -> bytearray:
    return content + content


def cut_in_an_image(content: bytearray, third: int) -> bytearray:
    return content[: third - 100]


@pytest.mark.parametrize(
    ("damage", "last"),
    [
        (cut_at_a_border, "b.png"),
        (cut_in_an_image, "b.png"),
        (damage_the_header, "b.png"),
        (cut_in_a_header, "b.png"),
        (put_another_after_it, "d.png"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: Callable[[bytearray, int], bytearray], last: str) -> None:
    path = write(tmp_path / "0.tar", "a.png", "b.png", "c.png", "d.png")
    with tarfile.open(path) as archive:
        third = archive.getmember("c.png").offset
    path.write_bytes(damage(bytearray(path.read_bytes()), third))
    message = refusal(lambda: members(path))
    assert message.startswith(f"data.root: {path}: truncated or damaged at or after {last} (")


def test_one_block_of_zeros_ends_a_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", "a.png")
    path.write_bytes(path.read_bytes()[: tarfile.BLOCKSIZE * 3])
    assert names(path) == ["a.png"]


def test_links_are_the_images_they_name(tmp_path: Path) -> None:
    path = write(
        *(tmp_path / "0.tar", "a/1.png", link("./a/2.png", "a/1.png", tarfile.LNKTYPE)),
        *(link("b/3.png", "../a/2.png", tarfile.SYMTYPE), "b/4.png"),
    )
    found = members(path)
    assert [member.name for member in found] == ["a/1.png", "./a/2.png", "b/3.png", "b/4.png"]
    assert [member.read() for member in found] == [png(0), png(0), png(0), png(3)]


@pytest.mark.parametrize("target", ["elsewhere.png", "a.png"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, target: str) -> None:
    path = write(tmp_path / "0.tar", link("a.png", target, tarfile.LNKTYPE), "c.png")
    assert refusal(lambda: members(path)) == f"data.root: {path}: a.png links to {target}, which is not in the shard"


def test_a_sample_has_one_image(tmp_path: Path) -> None:
    path = write(
        tmp_path / "0.tar", "1.seg.png", "1.png", "1.cls", "2.jpg", "2.png", "2.depth.v2.png", "x/2.JPG", "3.txt"
    )
    assert names(path) == ["1.png", "2.png", "x/2.JPG"]
    write(path, "1.png", "2.v2.png")
    assert f"{path}/2.v2.png: is the field 'v2.png' of a sample without an image" in refusal(lambda: members(path))


def test_litter_is_no_image(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", "./a/1.png", "a/._1.png", "__MACOSX/a/1.png", ".ipynb_checkpoints/1.png")
    (tmp_path / "._0.tar").write_bytes(b"Mac OS X")
    assert names(path) == ["./a/1.png"]
    assert find_shards(str(tmp_path)) == [str(path)]


def test_a_name_with_a_line_break_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", "a\nb.png", "c.png")
    path.write_bytes(path.read_bytes()[:1024])
    assert r"a\nb.png" in refusal(lambda: members(path))
