"""Laws of the data's identity: it follows what the files are, and nothing else."""

import os
import shutil
from pathlib import Path

import webdataset
from helpers.numbered_images import settings, write_images

from amp.data.identity import data_digests, folder_digest
from amp.data.listing import list_images

NAMES = ("train/a.png", "train/b.png", "train/c.png")


def digest(root: Path) -> str:
    return data_digests(list_images(settings(root, name="imagenet1k"), "train"), root)[1]


def test_a_folder_copied_with_its_times_is_the_same_data(tmp_path: Path) -> None:
    write_images(tmp_path / "one", *NAMES)
    shutil.copytree(tmp_path / "one", tmp_path / "two")  # keeps the times
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")


def test_files_added_removed_renamed_replaced_or_touched_are_other_data(tmp_path: Path) -> None:
    write_images(tmp_path, *NAMES)
    (tmp_path / "notes.txt").touch()
    own, of_images = folder_digest, digest
    seen = {(own(tmp_path), of_images(tmp_path))}

    def is_new() -> bool:
        found = (own(tmp_path), of_images(tmp_path))
        new = all(found[0] != one[0] and found[1] != one[1] for one in seen)
        seen.add(found)
        return new

    write_images(tmp_path, "train/d.png")
    assert is_new()
    (tmp_path / "train/d.png").rename(tmp_path / "train/e.png")
    assert is_new()
    (tmp_path / "train/a.png").unlink()
    assert is_new()
    content, time = (tmp_path / "train/b.png").read_bytes(), (tmp_path / "train/b.png").stat().st_mtime_ns
    (tmp_path / "train/b.png").write_bytes(content[:-1])
    os.utime(tmp_path / "train/b.png", ns=(time, time))
    assert is_new()
    os.utime(tmp_path / "train/b.png", ns=(time, time + 1))
    assert is_new()


def test_litter_does_not_count(tmp_path: Path) -> None:
    write_images(tmp_path, *NAMES)
    before = digest(tmp_path), folder_digest(tmp_path)
    write_images(tmp_path, "train/._a.png", "train/.ipynb_checkpoints/a.png", "__MACOSX/a.png")
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "meta.bin").touch()
    assert (digest(tmp_path), folder_digest(tmp_path)) == before


def test_members_of_shards_count_by_name_place_and_size(tmp_path: Path) -> None:
    def write(root: Path, *keys: str) -> str:
        root.mkdir()
        with webdataset.TarWriter(str(root / "0.tar"), mtime=0) as writer:
            for key in keys:
                writer.write({"__key__": key, "png": key.encode() * 9})
        os.utime(root / "0.tar", ns=(1, 1))
        return data_digests(list_images(settings(root, name="webdataset"), "train"), root)[1]

    first = write(tmp_path / "one", "a", "b", "c", "d")
    assert first == write(tmp_path / "two", "a", "b", "c", "d")
    assert first != write(tmp_path / "three", "a", "b", "e", "d")
    assert first != write(tmp_path / "four", "a", "b", "cc", "d")
