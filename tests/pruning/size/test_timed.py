"""Laws of seconds as a size, by a clock that is a formula: the target is met, tables are monotone, journals decide."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.scripted_entropy import ScriptedEntropy
from torch import Tensor

from amp.models import latency
from amp.pruning.measure.journal import Journal
from amp.pruning.measure.networks import NarrowedNetworks
from amp.pruning.size import relative_size
from amp.pruning.size.timed import interpolated
from amp.pruning.widths import choose_widths
from amp.settings.prune import SearchSettings
from amp.towers import Tower

HEADER: dict[str, Any] = {"settings": {"prune": {}}}


def of_blocks(width: float) -> float:
    """Seconds of a block: half of it is attention, and a narrow MLP costs more than its FLOPs."""
    return 1.0 + (width / 256) ** 0.8


def of_tower(widths: Sequence[int]) -> float:
    """Seconds of a whole tower, which hands on between blocks, so that the table alone is 20 % off."""
    return 2.0 + 0.8 * sum(map(of_blocks, widths))


@pytest.fixture
def clock(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Answers by the tower's widths of the moment, and remembers them; blocks are known by what runs them."""
    asked: list[list[int]] = []

    def seconds_of(run: Callable[[], object], device: torch.device, runs: int = 1) -> float:
        asked.append(tower.widths)
        of_a_block = getattr(run, "__qualname__", "").startswith("block_seconds")
        return of_blocks(tower.widths[0]) if of_a_block else of_tower(tower.widths)

    monkeypatch.setattr(latency, "seconds_of", seconds_of)
    monkeypatch.setattr(latency, "SPELL", 1e-9)
    return asked


def choose(tower: Tower, scores: Sequence[Tensor], journal: Journal, **settings: Any) -> list[int]:
    own = SearchSettings.model_validate(settings)
    entropy = ScriptedEntropy(tower, lambda widths: sum((b + 2) * 1e-3 * 256 / w for b, w in enumerate(widths)))
    networks = NarrowedNetworks(tower, scores, entropy, journal)
    return choose_widths(networks, own, relative_size(own, tower, journal))[0]


@pytest.mark.parametrize(
    ("allocation", "key", "asked", "left"),
    [("global", "throughput", 1.25, 0.8), ("uniform", "latency", 0.7, 0.7), ("search", "latency", 0.75, 0.75)],
)
def test_the_seconds_asked_for_are_met(
    tower: Tower, scores: list[Tensor], clock: list[list[int]], allocation: str, key: str, asked: float, left: float
) -> None:
    widths = choose(tower, scores, Journal(), allocation=allocation, target={key: asked})
    assert abs(of_tower(widths) / of_tower([256] * 5) / left - 1) <= 0.01
    assert all(width % 4 == 0 for width in widths)
    assert tower.widths == [256] * 5
    one_narrow = {tuple(own) for own in clock if own[1:] == [256] * 4}
    assert 5 <= len(one_narrow) <= 12, "blocks that are alike share one table"


def test_a_search_that_goes_on_decides_by_the_seconds_it_has_measured(
    tower: Tower, scores: list[Tensor], clock: list[list[int]], tmp_path: Path
) -> None:
    settings = {"allocation": "global", "target": {"latency": 0.75}}
    path, partial = tmp_path / "whole.jsonl", tmp_path / "partial.jsonl"
    widths = choose(tower, scores, Journal(path, HEADER), **settings)
    lines = path.read_bytes().splitlines(keepends=True)
    clock.clear()
    assert choose(tower, scores, Journal(path, HEADER), **settings) == widths
    assert not clock
    partial.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert choose(tower, scores, Journal(partial, HEADER), **settings) == widths
    assert partial.read_bytes() == path.read_bytes()


def test_a_speed_out_of_reach_is_refused(tower: Tower, scores: list[Tensor], clock: list[list[int]]) -> None:
    says = refusal(lambda: choose(tower, scores, Journal(), allocation="global", target={"throughput": 4.0}))
    fastest = of_tower([256] * 5) / of_tower([4] * 5)
    assert says == (
        "prune.target.throughput: 4: out of reach; the smallest network with these settings has "
        f"{fastest:.3g} times the dense speed"
    )


def test_a_table_never_says_that_a_narrower_block_is_slower() -> None:
    saving = interpolated({8: 0.95, 64: 0.93, 128: 1.02, 256: 1.0})
    assert saving(256) == 0
    saved = [float(saving(width)) for width in range(8, 257)]
    assert saved == sorted(saved, reverse=True)
    assert saved[0] == pytest.approx(0.06), "the two that contradict each other are one"
