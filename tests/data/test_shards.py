"""Laws of shards: the same images as in a folder, an order of their own that no number of processes changes."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from conftest import refusal
from helpers.numbered_images import (
    MAY_WARN_OF_WORKERS,
    epoch,
    joined,
    numbers,
    read_number,
    settings,
    world,
    write_images,
)

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.data.shards import MIXED_SHARDS, find_shards, list_members

pytestmark = [MAY_WARN_OF_WORKERS, pytest.mark.slow]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """40 numbered images in train/ shards of 2, with labels beside them; 6 in one val/ shard."""
    paths = write_images(tmp_path / "loose", *(f"{i:03d}.png" for i in range(46)))
    for split, first, last, size in (("train", 0, 40, 2), ("val", 40, 46, 6)):
        (tmp_path / "tars" / split).mkdir(parents=True)
        for number, start in enumerate(range(first, last, size)):
            with webdataset.TarWriter(str(tmp_path / "tars" / split / f"{number:03d}.tar")) as writer:
                for path in paths[start : start + size]:
                    writer.write({"__key__": path.stem, "png": path.read_bytes(), "cls": b"7"})
    return tmp_path / "tars"


def test_a_folder_of_shards_holds_every_image_once(shards: Path) -> None:
    own: dict[str, Any] = {"name": "webdataset"}
    assert joined(epoch(shards, world(), shuffle=False, **own)) == list(range(40))
    assert sorted(joined(epoch(shards, world(), **own))) == list(range(40))
    val = settings(shards, **own, shuffle=False, batch_size=6)
    assert numbers(list(Batches(list_images(val, "val"), read_number, val))) == [list(range(40, 46))]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("size", [2, 4])
def test_processes_and_positions_change_nothing(shards: Path, size: int, num_workers: int) -> None:
    own: dict[str, Any] = {"name": "webdataset", "num_workers": num_workers}
    one = epoch(shards, world(), 3, name="webdataset")
    shares = [epoch(shards, world(rank, size), 3, **own) for rank in range(size)]
    assert [joined(parts) for parts in zip(*shares, strict=True)] == one
    assert epoch(shards, world(), 3, 4, **own) == one[4:]
    assert epoch(shards, world(), 4, **own) != one


def test_an_order_reads_few_shards_at_a_time(shards: Path) -> None:
    assert MIXED_SHARDS == 16
    order = joined(epoch(shards, world(), name="webdataset"))
    first, rest = ({number // 2 for number in part} for part in (order[:32], order[32:]))
    assert (len(first), len(rest), first & rest) == (16, 4, set())


def test_a_pattern_names_shards_and_one_in_four_is_held_out(shards: Path) -> None:
    pattern = f"{shards}/train/{{000..003}}.tar"
    own = settings(Path(pattern), name="webdataset", shuffle=False, batch_size=2)
    assert len(find_shards(pattern)) == 4
    read = {
        split: joined(numbers(list(Batches(list_images(own, split), read_number, own)))) for split in ("train", "val")
    }
    assert read == {"train": [0, 1, 2, 4, 5, 6], "val": [3, 7]}


def test_mistakes_are_named(shards: Path, tmp_path: Path) -> None:
    missing = refusal(lambda: find_shards(f"{shards}/train/{{000..099}}.tar"))
    assert missing.startswith(f"data.root: {shards}/train/020.tar: no such shard")
    (tmp_path / "empty").mkdir()
    assert "holds no shard (.tar file)" in refusal(lambda: find_shards(str(tmp_path / "empty")))
    (tmp_path / "empty" / "0.tar").write_bytes(b"<html>404</html>" * 99)
    assert f"{tmp_path}/empty/0.tar: not a readable shard" in refusal(
        lambda: list_members([f"{tmp_path}/empty/0.tar"], {".png"})
    )


def test_a_broken_member_is_stood_in_for(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = shards / "train" / "001.tar"
    with tarfile.open(shard) as archive:
        offset = archive.getmember("003.png").offset_data
    content = bytearray(shard.read_bytes())
    content[offset : offset + 8] = b"no image"
    shard.write_bytes(content)
    assert epoch(shards, world(), name="webdataset", shuffle=False)[0] == [0, 1, 2, 4]
    assert f"skipped broken image {shard}/003.png" in capsys.readouterr().err
    shard.write_bytes(content[: offset + 10])
    cut_short = refusal(lambda: list_images(settings(shards, name="webdataset"), "train"))
    assert cut_short.startswith(f"data.root: {shard}: truncated or damaged at or after 003.png (")


def test_distillation_from_shards(
    distill_yaml: Path, golden_images: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    for split in ("train", "val"):
        (tmp_path / "tars" / split).mkdir(parents=True)
        with webdataset.TarWriter(str(tmp_path / "tars" / split / "0.tar")) as writer:
            for path in sorted((golden_images / split).rglob("*.png")):
                writer.write({"__key__": path.stem, "png": path.read_bytes()})
    words = ["--config_file", distill_yaml, "--set=optim.epochs=2"]
    assert call("distill.py", *words)[0] == 0
    own = [f"data.root={tmp_path}/tars", "data.name=webdataset", f"output.dir={tmp_path}/from_shards"]
    assert call("distill.py", *words, *(f"--set={word}" for word in own))[0] == 0
    assert (tmp_path / "from_shards" / "log.jsonl").read_bytes() == (tmp_path / "out" / "log.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("t-{000..", "the pattern has an unclosed brace"),
        ("t-{0..9", "the pattern has an unclosed brace"),
        ("t-{0..1000000000000}.tar", "the pattern stands for more than 1000000 shards"),
        ("{0..9999}-{0..9999}.tar", "the pattern stands for more than 1000000 shards"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(pattern: str, words: str) -> None:
    assert f"data.root: {pattern}: {words}" in refusal(lambda: find_shards(pattern))
