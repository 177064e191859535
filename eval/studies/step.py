"""Time of a distillation step beside that of its parts alone.

B images, C channels, S side in pixels.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from amp.distill.distiller import Distiller
from amp.run.console import progress
from amp.run.signals import StopRequest

PARTS = ("teacher forward", "student forward and backward", "optimizer")


def time_steps(distiller: Distiller, num_rounds: int, num_warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of every round: `{step, teacher forward, student forward and backward, optimizer}`, each in turn.

    A clock that drifts meets all of them alike. The student is trained by it.
    """
    size = distiller.teacher.image_size
    share = distiller.batches.settings.batch_size // distiller.world.size
    images_BCSS = torch.randn(share, 3, size, size).to(distiller.world.device)
    work: dict[str, Callable[[], object]] = {
        "step": lambda: distiller.train_step(images_BCSS, StopRequest()),
        **dict(zip(PARTS, distiller.parts(images_BCSS), strict=True)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in progress(range(num_warm_up + num_rounds), "time", "round"):
        for name, run in work.items():
            _wait(distiller)
            started = time.perf_counter()
            run()
            _wait(distiller)
            if number >= num_warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]]) -> float:
    """Median over the rounds of a step's time by the sum of its parts'."""
    sums = [sum(parts) for parts in zip(*(seconds[name] for name in PARTS), strict=True)]
    return statistics.median(step / total for step, total in zip(seconds["step"], sums, strict=True))


def describe_times(seconds: Mapping[str, list[float]]) -> str:
    """The medians as a table, and the ratio."""
    lines = [f"  {name:<30} {1e3 * statistics.median(of_name):10.2f} ms" for name, of_name in seconds.items()]
    return "\n".join([*lines, f"a step takes {ratio(seconds):.3f} of its parts alone"])


def _wait(distiller: Distiller) -> None:
    if distiller.world.device.type == "cuda":
        torch.cuda.synchronize(distiller.world.device)
