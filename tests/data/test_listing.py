"""Laws of the images' files: which ones a layout on disk holds, for training and held out."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import refusal
from helpers.numbered_images import settings, write_images

from amp.data.listing import Listing, list_images


@pytest.mark.parametrize(
    ("name", "train", "val"),
    [("coco", "train2017", "val2017"), ("imagenet1k", "train", "val"), ("imagefolder", "train", "val")],
)
def test_layouts_on_disk(
    tmp_path: Path, name: Literal["coco", "imagenet1k", "imagefolder"], train: str, val: str
) -> None:
    files = {
        "train": ["b.jpg", "a.JPEG", "deep/er/c.png", "n01/x.webp"],
        "val": ["z.png", "n01/y.bmp"],
    }
    expected = {
        split: sorted(write_images(tmp_path / folder, *files[split]))
        for split, folder in (("train", train), ("val", val))
    }
    write_images(tmp_path / "test2017", "not-asked-for.png")
    (tmp_path / train / "notes.txt").write_text("no image")
    (tmp_path / train / "folder.png").mkdir()
    own = settings(tmp_path, name=name)
    assert list_images(own, "train") == expected["train"]
    assert list_images(own, "val") == expected["val"]


def test_one_folder_holds_out_every_fourth_image(tmp_path: Path) -> None:
    paths = sorted(write_images(tmp_path, *(f"{'ab'[i % 2]}/{i:02d}.png" for i in range(10)), "flat.png"))
    train, val = (list_images(settings(tmp_path), split) for split in ("train", "val"))
    assert val == paths[3::4]
    assert sorted(train + val) == paths
    assert not set(train) & set(val)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each folder is listed and each file's state is asked for."""
    counted: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        own = getattr(os, name)

        def count(path: Any, *rest: Any, **named: Any) -> Any:
            counted[f"{name} {os.path.basename(path)}"] += 1
            return own(path, *rest, **named)

        return count

    for name in ("scandir", "stat"):
        monkeypatch.setattr(os, name, counting(name))
    return counted


def test_a_listing_asks_a_network_file_system_once(tmp_path: Path, asked: Counter[str]) -> None:
    write_images(tmp_path, *(f"{'ab'[i % 2]}/{i:02d}.png" for i in range(8)))
    asked.clear()
    listing = Listing(settings(tmp_path))
    listing.check(2, ["train", "val"])
    assert {asked["scandir a"], asked["scandir b"]} == {1}
    assert not any(key.startswith("stat") and key.endswith(".png") for key in asked)
    before = listing.digests("val", "train")
    assert [asked[f"stat {i:02d}.png"] for i in range(8)] == [1] * 8

    write_images(tmp_path, "c/new.png")
    assert (len(listing.images("train")), listing.digests("val", "train")) == (6, before)
    assert asked["scandir c"] == 0
    anew = Listing(settings(tmp_path))
    assert len(anew.images("train")) == 7
    assert anew.digests("train")["train_sha256"] != before["train_sha256"]


def test_a_folder_too_small_to_hold_anything_out_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png")
    message = refusal(lambda: list_images(settings(tmp_path), "val"))
    assert str(tmp_path) in message


def test_folders_may_be_links(tmp_path: Path) -> None:
    """Subsets of ImageNet are often made of links to the classes, or to the images, of the whole."""
    write_images(tmp_path / "whole", "n01/a.png", "n02/b.png", "n03/c.png")
    train = tmp_path / "subset" / "train"
    train.mkdir(parents=True)
    (train / "n01").symlink_to(tmp_path / "whole" / "n01")
    (train / "n02").mkdir()
    (train / "n02" / "b.png").symlink_to(tmp_path / "whole" / "n02" / "b.png")
    found = list_images(settings(tmp_path / "subset", name="imagenet1k"), "train")
    assert found == [train / "n01" / "a.png", train / "n02" / "b.png"]


@pytest.mark.parametrize("name", ["coco", "imagenet1k", "imagefolder"])
def test_a_missing_root_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for missing in ("nowhere", "file"):
        message = refusal(lambda missing=missing: list_images(settings(tmp_path / missing, name=name), "train"))
        assert message.startswith("data.root: ")
        assert str(tmp_path / missing) in message


@pytest.mark.parametrize(
    ("name", "folders"),
    [("coco", ("train2017", "val2017")), ("imagenet1k", ("train", "val")), ("imagefolder", ("train", "val"))],
)
@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_split_is_named(tmp_path: Path, name: str, folders: tuple[str, str], missing: int) -> None:
    write_images(tmp_path, f"{folders[1 - missing]}/a.png")
    own = settings(tmp_path, name=name)
    splits: tuple[Any, Any] = ("train", "val")
    assert len(list_images(own, splits[1 - missing])) == 1
    message = refusal(lambda: list_images(own, splits[missing]))
    assert message.startswith("data.root: ")
    assert str(tmp_path) in message
    assert repr(folders[missing]) in message


@pytest.mark.parametrize("name", ["coco", "imagenet1k", "imagefolder"])
def test_a_split_without_images_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / ("train2017" if name == "coco" else "train")
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    message = refusal(lambda: list_images(settings(tmp_path, name=name), "train"))
    assert message.startswith("data.root: ")
    assert str(folder) in message


def test_litter_is_no_image(tmp_path: Path) -> None:
    """What macOS, Windows and notebooks leave in folders, some of it with the endings of images."""
    names = ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/a.png", "__MACOSX/a.png")
    write_images(tmp_path / "train", *names, "n01/._a.png", "n01/.hidden.png")
    (expected,) = write_images(tmp_path / "train", "n01/a.png")
    assert list_images(settings(tmp_path, name="imagenet1k"), "train") == [expected]


def test_a_hidden_folder_may_hold_the_images(tmp_path: Path) -> None:
    (expected,) = write_images(tmp_path / ".cache", "train/a.png")
    assert list_images(settings(tmp_path / ".cache", name="imagenet1k"), "train") == [expected]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "train", "n01/a.png", "n02/b.png")
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("n02"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    message = refusal(lambda: list_images(settings(tmp_path, name="imagenet1k"), "train"))
    assert message == f"data.root: {tmp_path}/train/n02: cannot be read (Permission denied)"
