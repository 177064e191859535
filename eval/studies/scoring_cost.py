"""What a scoring pass takes beside the forward and backward passes in it."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from amp.run.world import world
from amp.scoring.taylor import TaylorScorer
from amp.statistics.entropy import information_entropy
from amp.towers import Tower

ROUNDS, WARM_UP = 20, 2


def time_scoring(tower: Tower, images_BCSS: Tensor, inverse_temperature: float) -> dict[str, float]:
    """Median seconds of a scoring pass, and of forward and backward to the activations alone, in turns."""

    def backward() -> None:
        information_entropy(tower.feature(images_BCSS), inverse_temperature).backward()

    def bare() -> None:
        first = tower.slots[0].out_projection
        handle = first.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach().requires_grad_(),))
        backward()
        handle.remove()

    with TaylorScorer(tower.slots) as scorer:
        pass

    def scoring() -> None:
        with scorer:
            loss = information_entropy(tower.feature(images_BCSS), inverse_temperature)
            scorer.step(loss, len(images_BCSS))

    seconds: dict[str, list[float]] = {"scoring": [], "backward": []}
    for _ in range(ROUNDS):
        for name, run in (("scoring", scoring), ("backward", bare)):
            seconds[name].append(_time(run, torch.cuda.synchronize if world().device.type == "cuda" else None))
    medians = {name: statistics.median(of_name[WARM_UP:]) for name, of_name in seconds.items()}
    return {**medians, "ratio": medians["scoring"] / medians["backward"]}


def _time(run: Callable[[], None], wait: Callable[[], None] | None) -> float:
    started = time.perf_counter()
    run()
    if wait:
        wait()
    return time.perf_counter() - started
