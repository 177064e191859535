"""What a piece of work takes in memory, as the allocator counts it."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def measured(run: Callable[[], Any]) -> int:
    """The most bytes that `run` held at once on the CPU, by its allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    now = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
