"""Time of a step beside that of its parts alone; of a distillation's.

B images, C channels, S side in pixels.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from amp.distillation import Trainer
from amp.run.console import progress
from amp.run.world import world

DISTILLATION = ("teacher forward", "student forward and backward", "optimizer")


def time_steps(trainer: Trainer, num_rounds: int, num_warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of every round: `{step, teacher forward, student forward and backward, optimizer}`, each in turn.

    A clock that drifts meets all of them alike. The student is trained by it.
    """
    size = trainer.student.image_size
    images_BCSS = torch.randn(trainer.batch_size // world().size, 3, size, size).to(world().device)
    target_BTD = trainer.target(images_BCSS)

    def learn() -> None:
        trainer.forget_gradients()
        trainer.gradients(images_BCSS, target_BTD)

    parts = (lambda: trainer.target(images_BCSS), learn, trainer.update)
    work: dict[str, Callable[[], object]] = {
        "step": lambda: trainer.train_step(images_BCSS),
        **dict(zip(DISTILLATION, parts, strict=True)),
    }
    return in_turns(work, num_rounds, num_warm_up)


def in_turns(work: Mapping[str, Callable[[], object]], num_rounds: int, num_warm_up: int) -> dict[str, list[float]]:
    """Seconds of each, a number a round but for those of the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in progress(range(num_warm_up + num_rounds), "time", "round"):
        for name, run in work.items():
            _wait()
            started = time.perf_counter()
            run()
            _wait()
            if number >= num_warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], parts: Sequence[str]) -> float:
    """Median over the rounds of a step's time by the sum of its parts'."""
    sums = [sum(of_round) for of_round in zip(*(seconds[name] for name in parts), strict=True)]
    return statistics.median(step / total for step, total in zip(seconds["step"], sums, strict=True))


def describe_times(seconds: Mapping[str, list[float]], parts: Sequence[str]) -> str:
    """The medians as a table, and the ratio."""
    lines = [f"  {name:<30} {1e3 * statistics.median(of_name):10.2f} ms" for name, of_name in seconds.items()]
    return "\n".join([*lines, f"a step takes {ratio(seconds, parts):.3f} of the time of its parts alone"])


def _wait() -> None:
    if world().device.type == "cuda":
        torch.cuda.synchronize(world().device)
