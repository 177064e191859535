"""What the parts of a scoring by reconstruction take.

B images, C channels, S side in pixels, N tokens, H hidden neurons, D width of the tower.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from amp.run.world import world
from amp.scoring.criteria._picks import forward_gains
from amp.scoring.criteria._sensitivity import SensitivityCollector
from amp.statistics.moments import MomentCollector
from amp.towers import Tower

ROUNDS = 5


def _time(run: Callable[[], None], wait: Callable[[], None] | None) -> float:
    started = time.perf_counter()
    run()
    if wait:
        wait()
    return time.perf_counter() - started


def time_reconstruction(tower: Tower, images_BCSS: Tensor) -> dict[str, float]:
    """Median seconds of the parts of a scoring by reconstruction: a batch's forward pass, its sensitivities (forward
    and backward), its moments, and all picks of one block, the widest."""
    hooked = SensitivityCollector(tower.slots)
    sums = MomentCollector(tower.slots)
    slot = max(tower.slots, key=lambda slot: slot.hidden_width)
    seen: list[Tensor] = []

    def forward() -> None:
        with torch.no_grad():
            tower.feature(images_BCSS)

    def sensitivities() -> None:
        with hooked:
            tower.feature(images_BCSS).float().sum().backward()

    def with_moments() -> None:
        with torch.no_grad(), sums:
            tower.feature(images_BCSS)

    handle = slot.out_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    forward()
    handle.remove()
    a_NH = seen[0].double()
    problem = torch.cov(a_NH.T)[None], slot.out_projection.weight.detach().double()[None]
    unit_DD = torch.eye(problem[1].shape[1], dtype=torch.float64, device=a_NH.device)[None]

    def picks() -> None:
        forward_gains(*problem, unit_DD)

    parts = {"forward": forward, "sensitivities": sensitivities, "with moments": with_moments}
    wait = torch.cuda.synchronize if world().device.type == "cuda" else None
    seconds: dict[str, list[float]] = {name: [] for name in (*parts, "picks of a block")}
    for _ in range(ROUNDS):
        for name, run in parts.items():
            seconds[name].append(_time(run, wait))
        seconds["picks of a block"].append(_time(picks, wait))
    found = {name: statistics.median(of_name) for name, of_name in seconds.items()}
    return {**found, "moments": found.pop("with moments") - found["forward"]}
