"""How a run's speed is told: images a second, the share spent waiting, what is left."""

import time

import pytest
import torch

from amp.data.speed import LoopSpeed, in_words


def test_speed_waiting_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    speed = LoopSpeed(64, torch.device("cpu"))

    def batches() -> object:
        for number in range(4):
            now[0] += 1  # to read a batch
            yield number

    seen = []
    for number in speed.watch(batches()):
        now[0] += 3  # to learn from it
        seen.append(number)
    told = speed.read(steps_left=900)
    assert seen == [0, 1, 2, 3]
    assert told["images_per_second"] == 64 * 4 / 16
    assert told["data_wait_share"] == 0.25
    assert told["hours_left"] == 1.0
    assert 0.01 < told["memory_gb"] < 100
    assert in_words(told).startswith("16 img/s, 25% waiting for data, ")

    now[0] += 1
    assert speed.read(1)["images_per_second"] == 0, "each reading is of the time since the last one"
