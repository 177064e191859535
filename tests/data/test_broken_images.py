"""Laws of reading: broken images are named and stood in for, whoever reads them; images of any mode become RGB."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal
from helpers.numbered_images import MAY_WARN_OF_WORKERS, epoch, joined, numbers, read_number, settings, world
from PIL import Image, features
from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.errors import UserError
from amp.run.world import among

pytestmark = [MAY_WARN_OF_WORKERS, pytest.mark.slow]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def spoil(path: Path, kind: str) -> None:
    """Makes an image unreadable, as files on disks are."""
    whole = path.read_bytes()
    if kind == "avif of zeros":
        Image.effect_noise((32, 32), 50).convert("RGB").save(path, format="AVIF")
        whole = path.read_bytes()
        start = whole.index(b"mdat") + 4
        path.write_bytes(whole[:start] + bytes(len(whole) - start))
    else:
        bomb = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + png_chunk(b"IDAT", b"")
        path.write_bytes(
            {
                "truncated": whole[:50],
                "text": b"<html>404 Not Found</html>",
                "empty": b"",
                "header only": whole[:33],
                "a bomb": b"\x89PNG\r\n\x1a\n" + bomb,
            }[kind]
        )


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "header only", "a bomb", "avif of zeros"])
def test_a_broken_image_is_named_once_and_stood_in_for(
    root: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "avif of zeros" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    own = settings(root, shuffle=False)
    paths = list_images(own, "train")
    spoil(paths[2], kind)
    batches = Batches(paths, read_number, own)
    expected = [[0, 2, 6, 6], [8, 10, 12, 14]]
    assert numbers(list(batches))[:2] == expected, "the next readable file stands in"
    assert numbers(list(batches))[:2] == expected
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(f"warning: skipped broken image {paths[2]}"), "named once, however often it is met"
    assert out == ""
    assert list(batches.broken) == [str(paths[2])]
    batches.say_broken()
    out, err = capsys.readouterr()
    assert out.startswith("skipped 1 of 23 image files")
    assert len(out.splitlines()) == 1
    assert err == ""


def test_without_broken_images_nothing_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = settings(root)
    batches = Batches(list_images(own, "train"), read_number, own)
    list(batches)
    batches.say_broken()
    assert tuple(capsys.readouterr()) == ("", "")


def test_the_last_files_stand_in_is_the_first(root: Path) -> None:
    own = settings(root, shuffle=False, batch_size=23)
    paths = list_images(own, "train")
    for path in paths[-2:]:
        spoil(path, "text")
    (batch,) = numbers(list(Batches(paths, read_number, own)))
    assert batch == [*range(0, 23, 2), *range(1, 19, 2), 0, 0]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_broken_images_leave_the_batches_equal_on_any_number_of_processes(
    root: Path, shuffle: bool, num_workers: int
) -> None:
    paths = list_images(settings(root), "train")
    for index, kind in ((0, "text"), (7, "truncated"), (8, "empty"), (22, "header only")):
        spoil(paths[index], kind)
    one = epoch(root, world(), shuffle=shuffle)
    assert [len(batch) for batch in one] == [4] * 5
    for size in (2, 4):
        shares = [epoch(root, world(r, size), shuffle=shuffle, num_workers=num_workers) for r in range(size)]
        assert [joined(parts) for parts in zip(*shares, strict=True)] == one


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_broken_file_is_counted_whoever_read_it(
    root: Path, num_workers: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings(root, shuffle=False, num_workers=num_workers)
    paths = list_images(own, "train")
    for index in (3, 4, 5, 12):
        spoil(paths[index], "text")
    batches = Batches(paths, read_number, own)
    list(batches)
    list(replace(batches, num_samples=20))
    batches.say_broken()
    out, err = capsys.readouterr()
    assert out.startswith("skipped 4 of 23 image files")
    *named, rest = err.splitlines()
    expected = [f"skipped broken image {paths[index]}" for index in (3, 4, 5)]
    assert [line.removeprefix("warning: ").partition(" (")[0] for line in named] == expected
    assert rest == "warning: skipped 1 more broken image"
    monkeypatch.setenv("AMP_VERBOSE", "1")
    list(Batches(paths, read_number, own))
    assert f"skipped broken image {paths[12]}" in capsys.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 2])
def test_strict_stops_at_the_first_broken_image(root: Path, num_workers: int) -> None:
    own = settings(root, strict=True, num_workers=num_workers)
    paths = list_images(own, "train")
    spoil(paths[5], "truncated")
    message = refusal(lambda: list(Batches(paths, read_number, own)))
    assert message.startswith("data.strict: ")
    assert str(paths[5]) in message


def test_strict_speaks_for_the_process_that_met_the_file(root: Path) -> None:
    own = settings(root, strict=True, shuffle=False)
    paths = list_images(own, "train")
    spoil(paths[3], "text")
    with among(world(1, 2)), pytest.raises(UserError) as caught:
        list(Batches(paths, read_number, own))
    assert caught.value.rank_local
    with among(world(1, 2)), pytest.raises(UserError):
        list(Batches(paths, read_number, own))
    # The other process of this batch meets no broken file.
    with among(world(0, 2)):
        assert numbers(list(Batches(paths, read_number, own))[:1]) == [[0, 2]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_of_broken_images_is_refused(root: Path, num_workers: int) -> None:
    own = settings(root, num_workers=num_workers)
    paths = list_images(own, "train")
    for path in paths:
        spoil(path, "text")
    message = refusal(lambda: list(Batches(paths, read_number, own)))
    assert str(root) in message
    assert "no readable image" in message


def test_a_file_that_vanished_is_a_broken_one(root: Path) -> None:
    own = settings(root, shuffle=False)
    paths = list_images(own, "train")
    paths[1].unlink()
    assert numbers(list(Batches(paths, read_number, own)))[0] == [0, 4, 4, 6]


def test_an_error_of_the_transform_is_no_broken_image(root: Path) -> None:
    """A bug in a transform must not pass for a folder of unreadable files."""

    def fails(image: Image.Image) -> Tensor:
        raise ValueError("a bug")

    own = settings(root)
    with pytest.raises(ValueError, match="a bug") as caught:
        list(Batches(list_images(own, "train"), fails, own))
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "train").mkdir()
    for number in range(2):
        if mode == "I;16":
            image = Image.fromarray(np.full((6, 8), 1000, dtype=np.uint16))
        else:
            image = Image.new("RGB", (8, 6)).convert(mode)
        image.save(tmp_path / "train" / f"{number}.{'tif' if mode == 'CMYK' else 'png'}")
    seen: list[str] = []

    def note(image: Image.Image) -> Tensor:
        seen.append(image.mode)
        return torch.zeros(1)

    own = settings(tmp_path, batch_size=2)
    list(Batches(list_images(own, "train"), note, own))
    assert seen == ["RGB", "RGB"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_more_than_a_share_of_broken_images_ends_the_run(root: Path, num_workers: int) -> None:
    own = settings(root, shuffle=False, max_broken=0.1, num_workers=num_workers)
    paths = list_images(own, "train")
    for index in (1, 5, 7):
        spoil(paths[index], "text")
    assert len(list(Batches(paths, read_number, own))) == 5, "a tenth of 23, rounded up, is allowed"
    spoil(paths[9], "text")
    with pytest.raises(UserError) as caught:
        list(Batches(paths, read_number, own))
    assert caught.value.rank_local
    assert str(caught.value).startswith(f"data.max_broken: 4 of 23 images are broken, the last one {paths[9]} (")
    assert "more than the allowed share of 0.1" in str(caught.value)


def test_a_process_counts_against_its_own_share(root: Path) -> None:
    own = settings(root, shuffle=False, max_broken=0.1)
    paths = list_images(own, "train")
    for index in (0, 1, 4):
        spoil(paths[index], "text")
    with among(world(0, 2)), pytest.raises(UserError, match=r"data.max_broken: 3 of 11 images are broken"):
        list(Batches(paths, read_number, own))
