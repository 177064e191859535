"""Processes of a run as threads of one, for what gathers Python objects alone."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from amp.run.world import World, among


@dataclass(frozen=True)
class ThreadWorld(World):
    """One process of several, as a thread."""

    barrier_of_all: Any = None
    values: list[Any] = field(default_factory=list)

    def gather_objects(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier_of_all.wait(60)
        values = list(self.values)
        self.barrier_of_all.wait(60)
        return values

    def gather_on_main(self, value: Any) -> list[Any]:
        values = self.gather_objects(value)
        return values if self.is_main else []

    def broadcast(self, value: Any) -> Any:
        return self.gather_objects(value)[0]


def on_threads(size: int, function: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * size
    barrier, values = threading.Barrier(size), [None] * size

    def work(rank: int) -> None:
        with among(ThreadWorld(rank, size, torch.device("cpu"), barrier, values)):
            results[rank] = function()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
