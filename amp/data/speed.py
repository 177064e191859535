"""How fast a run goes, and what it waits for."""

import resource
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

Item = TypeVar("Item")
_Moment = float | torch.cuda.Event


class LoopSpeed:
    """Speed, waiting for data and memory of a loop over batches.

    A GPU waits while it has nothing to do, however long the process that feeds it does.

    Args:
        batch_size: images of a step, over all processes.
        device: whose memory is shown; for a CPU the process's.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size, self.device = batch_size, device
        self._start()

    def _start(self) -> None:
        self._since, self._steps = time.perf_counter(), 0
        self._waits: list[tuple[_Moment, _Moment]] = []

    def watch(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches, with the time until each is there noted."""
        iterator = iter(batches)
        while True:
            asked = self._now()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waits.append((asked, self._now()))
            self._steps += 1
            yield batch

    def _now(self) -> "_Moment":
        """The end of the work that the device has been given so far."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def read(self, steps_left: int) -> dict[str, float]:
        """Since the last call: `{images_per_second, data_wait_share, memory_gb, hours_left}`; memory is the peak."""
        seconds = time.perf_counter() - self._since
        values = {
            "images_per_second": self.batch_size * self._steps / seconds,
            "data_wait_share": sum(_seconds(*wait) for wait in self._waits) / seconds,
            "memory_gb": self._peak_bytes() / 1e9,
            "hours_left": steps_left * seconds / max(1, self._steps) / 3600,
        }
        self._start()
        return values

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _seconds(asked: _Moment, there: _Moment) -> float:
    if isinstance(asked, float) or isinstance(there, float):
        return float(there) - float(asked)  # type: ignore[arg-type]
    there.synchronize()
    return asked.elapsed_time(there) / 1e3


def in_words(speed: dict[str, float]) -> str:
    """Short enough for a progress bar; it shows the time that is left by itself."""
    images, waiting, memory = (speed[key] for key in ("images_per_second", "data_wait_share", "memory_gb"))
    return f"{images:.0f} img/s, {waiting:.0%} waiting for data, {memory:.1f} GB memory"
