"""Laws of the batches: which images, in which order, whatever the processes and the workers."""

from pathlib import Path

import pytest
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

pytestmark = MAY_WARN_OF_WORKERS


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
    assert len(Batches(list_images(own, "train"), read_number, own)) == 1


def test_num_samples_takes_the_first_images_of_the_order(root: Path) -> None:
    for shuffle in (True, False):
        own = settings(root, shuffle=shuffle)
        paths = list_images(own, "train")
        whole = Batches(paths, read_number, own)
        some = Batches(paths, read_number, own, num_samples=10)
        assert (len(whole), len(some)) == (5, 2)
        assert some.order(0) == whole.order(0)[:10]
        assert numbers(list(some)) == numbers(list(whole))[:2]
        more = Batches(paths, read_number, own, num_samples=1000)
        assert numbers(list(more)) == numbers(list(whole))


def test_the_shuffle_is_a_function_of_seed_and_epoch(root: Path) -> None:
    first = epoch(root, world())
    assert epoch(root, world()) == first
    assert epoch(root, world(), seed=1) != first
    assert epoch(root, world(), number=1) != first
    assert epoch(root, world(), number=1, seed=1) != epoch(root, world(), number=1)
    own = settings(root)
    order = Batches(list_images(own, "train"), read_number, own).order(0)
    assert sorted(order) == list(range(23))
    assert order != list(range(23))
    assert epoch(root, world(), number=5, shuffle=False) == epoch(root, world(), shuffle=False)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_at_a_batch_equals_skipping_the_ones_before(root: Path, num_workers: int) -> None:
    whole = epoch(root, world(), 2)
    for start in range(len(whole) + 1):
        assert epoch(root, world(), 2, start, num_workers=num_workers) == whole[start:]


def test_iterating_is_the_first_epoch_every_time(root: Path) -> None:
    own = settings(root)
    batches = Batches(list_images(own, "train"), read_number, own)
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
    message = refusal(lambda: Batches(paths, read_number, own))
    assert "data.batch_size: 64 " in message
    assert f" {len(paths)} images" in message
    assert str(data_root) in message, "it should say which images"


def test_fewer_samples_than_a_batch_are_refused(root: Path) -> None:
    own = settings(root, batch_size=16)
    assert "16" in refusal(lambda: Batches(list_images(own, "train"), read_number, own, num_samples=15))
