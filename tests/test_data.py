"""Laws of the images: which files, in which order, whatever the processes, the workers and the broken files."""

import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import Tensor
from torchvision.transforms import v2

from amp.config import DataSettings
from amp.data import Batches, augmentation, list_images
from amp.distributed import World
from amp.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

# A machine of one core warns of two workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, torch.device("cpu"))


def write_images(folder: Path, *names: str) -> list[Path]:
    """Images that carry their own number in their first pixel."""
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 8, 3), 99, dtype=np.uint8)
        pixels[0, 0] = (number // 256, number % 256, 0)
        Image.fromarray(pixels).save(path, format="PNG")
    return paths


def read_number(image: Image.Image) -> Tensor:
    """A transform: the number that `write_images` gave the image."""
    red, green, _ = image.getpixel((0, 0))
    return torch.tensor(256 * red + green)


def settings(root: Path, **more: Any) -> DataSettings:
    return DataSettings(**{"name": "imagefolder", "root": str(root), "batch_size": 4, "num_workers": 0} | more)


def refusal(call: Callable[[], Any]) -> str:
    """The one line with which `call` refuses."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.strip()
    return message


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """23 training images in two folders, 9 held-out ones."""
    folder = tmp_path / "images"
    write_images(folder, *(f"train/{'ab'[i % 2]}/{i:03d}.png" for i in range(23)))
    write_images(folder, *(f"val/{i:03d}.png" for i in range(9)))
    return folder


def numbers(batches: Sequence[Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def joined(parts: Iterable[list[int]]) -> list[int]:
    return [number for part in parts for number in part]


def epoch(root: Path, world: World, number: int = 0, start: int = 0, **more: Any) -> list[list[int]]:
    own = settings(root, **more)
    batches = Batches(list_images(own, "train"), read_number, own, world)
    return numbers(list(batches.epoch(number, start)))


# ---------------------------------------------------------------- layouts


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


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [2, 4])
def test_the_processes_shares_make_up_the_batches_of_one_process(root: Path, shuffle: bool, size: int) -> None:
    for number in (0, 3):
        one = epoch(root, world(), number, shuffle=shuffle)
        shares = [epoch(root, world(rank, size), number, shuffle=shuffle) for rank in range(size)]
        assert all(len(batch) == 4 // size for share in shares for batch in share)
        assert [joined(parts) for parts in zip(*shares, strict=True)] == one


def test_an_incomplete_last_batch_is_dropped(root: Path) -> None:
    assert [len(batch) for batch in epoch(root, world())] == [4] * 5
    # Numbers are those of writing; files are sorted, folder a (even) before folder b (odd).
    file_order = [*range(0, 23, 2), *range(1, 23, 2)]
    assert joined(epoch(root, world(), shuffle=False)) == file_order[:20]
    own = settings(root, batch_size=23)
    assert len(Batches(list_images(own, "train"), read_number, own, world())) == 1


def test_num_samples_takes_the_first_images_of_the_order(root: Path) -> None:
    for shuffle in (True, False):
        own = settings(root, shuffle=shuffle)
        paths = list_images(own, "train")
        whole = Batches(paths, read_number, own, world())
        some = Batches(paths, read_number, own, world(), num_samples=10)
        assert (len(whole), len(some)) == (5, 2)
        assert some.order(0) == whole.order(0)[:10]
        assert numbers(list(some)) == numbers(list(whole))[:2]
        more = Batches(paths, read_number, own, world(), num_samples=1000)
        assert numbers(list(more)) == numbers(list(whole))


def test_the_shuffle_is_a_function_of_seed_and_epoch(root: Path) -> None:
    first = epoch(root, world())
    assert epoch(root, world()) == first
    assert epoch(root, world(), seed=1) != first
    assert epoch(root, world(), number=1) != first
    assert epoch(root, world(), number=1, seed=1) != epoch(root, world(), number=1)
    own = settings(root)
    order = Batches(list_images(own, "train"), read_number, own, world()).order(0)
    assert sorted(order) == list(range(23))
    assert order != list(range(23))
    assert epoch(root, world(), number=5, shuffle=False) == epoch(root, world(), shuffle=False)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_at_a_batch_equals_skipping_the_ones_before(root: Path, num_workers: int) -> None:
    whole = epoch(root, world(), 2)
    for start in range(len(whole) + 1):
        assert epoch(root, world(), 2, start, num_workers=num_workers) == whole[start:]


def test_iterating_is_the_first_epoch_every_time(root: Path) -> None:
    own = settings(root)
    batches = Batches(list_images(own, "train"), read_number, own, world())
    assert len(batches) == 5
    assert numbers(list(batches)) == numbers(list(batches)) == epoch(root, world(), 0)


@pytest.mark.parametrize("size", [3, 8])
def test_a_batch_that_does_not_divide_is_refused(root: Path, size: int) -> None:
    message = refusal(lambda: epoch(root, world(1, size)))
    assert message == f"data.batch_size: 4 is not divisible by the {size} processes"


@pytest.mark.parametrize("layout", ["split", "nested", "flat"])
def test_fewer_images_than_a_batch_are_refused(tmp_path: Path, layout: str) -> None:
    folder = {"split": "train/n01", "nested": "n01", "flat": "."}[layout]
    data_root = tmp_path / "the-images"
    write_images(data_root, *(f"{folder}/{i}.png" for i in range(5)))
    own = settings(data_root, batch_size=64)
    paths = list_images(own, "train")
    message = refusal(lambda: Batches(paths, read_number, own, world()))
    assert "data.batch_size: 64 " in message
    assert f" {len(paths)} images" in message
    assert str(data_root) in message, "it should say which images"


def test_fewer_samples_than_a_batch_are_refused(root: Path) -> None:
    own = settings(root, batch_size=16)
    assert "16" in refusal(lambda: Batches(list_images(own, "train"), read_number, own, world(), num_samples=15))


# ---------------------------------------------------------------- broken images


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
    batches = Batches(paths, read_number, own, world())
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
    assert out.startswith("1 of 23 image files were broken and skipped")
    assert len(out.splitlines()) == 1
    assert err == ""


def test_without_broken_images_nothing_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = settings(root)
    batches = Batches(list_images(own, "train"), read_number, own, world())
    list(batches)
    batches.say_broken()
    assert tuple(capsys.readouterr()) == ("", "")


def test_the_last_files_stand_in_is_the_first(root: Path) -> None:
    own = settings(root, shuffle=False, batch_size=23)
    paths = list_images(own, "train")
    for path in paths[-2:]:
        spoil(path, "text")
    (batch,) = numbers(list(Batches(paths, read_number, own, world())))
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
    root: Path, num_workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    own = settings(root, shuffle=False, num_workers=num_workers)
    paths = list_images(own, "train")
    for index in (3, 4, 5, 12):
        spoil(paths[index], "text")
    batches = Batches(paths, read_number, own, world())
    list(batches)
    batches.say_broken()
    out, err = capsys.readouterr()
    assert out.startswith("4 of 23 image files were broken")
    lines = err.splitlines()
    assert len(lines) == 4
    assert all(any(f"skipped broken image {paths[index]}" in line for line in lines) for index in (3, 4, 5, 12))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_strict_stops_at_the_first_broken_image(root: Path, num_workers: int) -> None:
    own = settings(root, strict=True, num_workers=num_workers)
    paths = list_images(own, "train")
    spoil(paths[5], "truncated")
    message = refusal(lambda: list(Batches(paths, read_number, own, world())))
    assert message.startswith("data.strict: ")
    assert str(paths[5]) in message


def test_strict_speaks_for_the_process_that_met_the_file(root: Path) -> None:
    own = settings(root, strict=True, shuffle=False)
    paths = list_images(own, "train")
    spoil(paths[3], "text")
    with pytest.raises(UserError) as caught:
        list(Batches(paths, read_number, own, world(1, 2)))
    assert caught.value.rank_local
    with pytest.raises(UserError):
        list(Batches(paths, read_number, own, world(1, 2)))
    # The other process of this batch meets no broken file.
    assert numbers(list(Batches(paths, read_number, own, world(0, 2)))[:1]) == [[0, 2]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_of_broken_images_is_refused(root: Path, num_workers: int) -> None:
    own = settings(root, num_workers=num_workers)
    paths = list_images(own, "train")
    for path in paths:
        spoil(path, "text")
    message = refusal(lambda: list(Batches(paths, read_number, own, world())))
    assert str(root) in message
    assert "no readable image" in message


def test_a_file_that_vanished_is_a_broken_one(root: Path) -> None:
    own = settings(root, shuffle=False)
    paths = list_images(own, "train")
    paths[1].unlink()
    assert numbers(list(Batches(paths, read_number, own, world())))[0] == [0, 4, 4, 6]


def test_an_error_of_the_transform_is_no_broken_image(root: Path) -> None:
    """A bug in a transform must not pass for a folder of unreadable files."""

    def fails(image: Image.Image) -> Tensor:
        raise ValueError("a bug")

    own = settings(root)
    with pytest.raises(ValueError, match="a bug") as caught:
        list(Batches(list_images(own, "train"), fails, own, world()))
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
    list(Batches(list_images(own, "train"), note, own, world()))
    assert seen == ["RGB", "RGB"]


# ---------------------------------------------------------------- augmentation


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 noisy images, and a copy of the first."""
    folder = tmp_path_factory.mktemp("pictures") / "train"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    shutil.copy(folder / "00.png", folder / "00copy.png")
    return folder.parent


def augmented(
    root: Path, recipe: Any, number: int = 0, start: int = 0, own: World | None = None, **more: Any
) -> Tensor:
    """The images of an epoch (N, 3, 24, 24), in its order."""
    data = settings(root, **more)
    transform = augmentation(recipe, 24, MEAN, STD, "bicubic")
    batches = Batches(list_images(data, "train"), transform, data, own or world())
    return torch.cat(list(batches.epoch(number, start)))


@pytest.mark.parametrize("recipe", ["clip", "dinov2"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(pictures: Path, recipe: str) -> None:
    first = augmented(pictures, recipe, shuffle=False)
    assert first.shape == (12, 3, 24, 24)
    assert first.dtype == torch.float32
    torch.manual_seed(123)
    assert torch.equal(augmented(pictures, recipe, shuffle=False), first)
    assert torch.equal(augmented(pictures, recipe, shuffle=False, num_workers=2), first)
    assert torch.equal(augmented(pictures, recipe, shuffle=False, batch_size=2), first)
    assert torch.equal(augmented(pictures, recipe, shuffle=False, start=1), first[4:])
    shares = [augmented(pictures, recipe, shuffle=False, own=world(rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat([s.unflatten(0, (3, 2)) for s in shares], dim=1).flatten(0, 1), first)
    # Shuffled, each image keeps its own crop.
    data = settings(pictures, batch_size=13)
    order = Batches(list_images(data, "train"), read_number, data, world()).order(0)
    shuffled = augmented(pictures, recipe, batch_size=13)
    back = shuffled[torch.tensor(order).argsort()]
    assert torch.equal(back[:12], first)


@pytest.mark.parametrize("recipe", ["clip", "dinov2"])
def test_augmentation_differs_between_epochs_seeds_and_images(pictures: Path, recipe: str) -> None:
    first = augmented(pictures, recipe, shuffle=False)
    for other in (
        augmented(pictures, recipe, number=1, shuffle=False),
        augmented(pictures, recipe, number=2, shuffle=False),
        augmented(pictures, recipe, shuffle=False, seed=1),
    ):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    # 00.png and 00copy.png are one picture under two indices.
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_leaves_every_global_random_state_alone(pictures: Path, num_workers: int) -> None:
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    augmented(pictures, "dinov2", num_workers=num_workers)
    assert random.getstate() == python_state
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))
    assert torch.equal(torch.get_rng_state(), torch_state)


def parts_of(recipe: Any) -> dict[type, Any]:
    """Transforms by type, the randomly applied ones with their probability."""
    compose: Any = augmentation(recipe, 24, MEAN, STD, "bilinear")
    parts: dict[type, Any] = {}
    for part in compose.transforms:
        inner = part.transforms[0] if isinstance(part, v2.RandomApply) else part
        parts[type(inner)] = (inner, getattr(part, "p", None))
    return parts


def test_recipe_of_clip_is_the_papers() -> None:
    parts = parts_of("clip")
    crop, _ = parts[v2.RandomResizedCrop]
    assert (tuple(crop.scale), tuple(crop.size)) == ((0.2, 1.0), (24, 24))
    assert crop.interpolation.value == "bilinear"
    assert parts[v2.RandomHorizontalFlip][1] == 0.5
    colours = (v2.ColorJitter, v2.RandomGrayscale, v2.GaussianBlur, v2.RandomSolarize)
    assert not any(kind in parts for kind in colours)


def test_recipe_of_dinov2_is_the_papers() -> None:
    parts = parts_of("dinov2")
    crop, _ = parts[v2.RandomResizedCrop]
    assert tuple(crop.scale) == (0.05, 1.0)
    assert parts[v2.RandomHorizontalFlip][1] == 0.5
    jitter, probability = parts[v2.ColorJitter]
    assert probability == 0.8
    assert jitter.brightness == jitter.contrast == (0.6, 1.4)
    assert (jitter.saturation, jitter.hue) == ((0.8, 1.2), (-0.1, 0.1))
    assert parts[v2.RandomGrayscale][1] == 0.2
    assert parts[v2.RandomSolarize][1] == 0.2
    assert v2.GaussianBlur in parts
    # Solarising inverts above half of the range, so it must see bytes, before the scaling to 0-1.
    kinds = list(parts)
    assert kinds.index(v2.RandomSolarize) < kinds.index(v2.ToDtype) < kinds.index(v2.Normalize)


@pytest.mark.parametrize("recipe", ["clip", "dinov2"])
def test_augmented_images_are_normalised_once(recipe: Any) -> None:
    grey = Image.new("RGB", (40, 48), (255, 255, 255))
    torch.manual_seed(0)
    transform = augmentation(recipe, 24, MEAN, STD, "bicubic")
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    for _ in range(20):
        image_CHW = transform(grey)
        assert (image_CHW <= white.view(3, 1, 1) + 1e-5).all()
        assert (image_CHW >= black.view(3, 1, 1) - 1e-5).all()
    if recipe == "clip":
        torch.testing.assert_close(image_CHW, white.view(3, 1, 1).expand(3, 24, 24))
