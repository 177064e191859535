"""Measured seconds: the tower is left as it was, blocks of one kind are found, and what does not fit is told."""

import pytest
import torch
from conftest import refusal

from amp.models import latency
from amp.models.latency import alike_blocks, block_seconds, relative_seconds, tower_seconds
from amp.towers import Tower


def test_seconds_are_measured_and_the_tower_stays(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SPELL", 1e-9)
    before = {name: value.clone() for name, value in tower.model.state_dict().items()}
    (kind,) = alike_blocks(tower, 2)
    assert kind.blocks == [0, 1, 2, 3, 4]
    seconds = block_seconds(tower, kind, [8, 256], 2)
    assert list(seconds) == [8, 256]
    assert min(*seconds.values(), tower_seconds(tower, 2), relative_seconds(tower, [8] * 5, 2)) > 0
    assert all(torch.equal(value, before[name]) for name, value in tower.model.state_dict().items())
    assert not any(block._forward_pre_hooks for block in tower.blocks.values())


def test_blocks_of_other_shapes_are_of_another_kind(tower: Tower) -> None:
    tower.slots[1].keep(torch.arange(64))
    tower.slots[3].keep(torch.arange(64))
    assert [kind.blocks for kind in alike_blocks(tower, 1)] == [[0, 2, 4], [1, 3]]


def test_a_batch_that_does_not_fit_is_told(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*inputs: object) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(latency, "seconds_of", full)
    assert (
        refusal(lambda: tower_seconds(tower, 64))
        == "batch_size: a batch of 64 images does not fit in the device's memory"
    )
