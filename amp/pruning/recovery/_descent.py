"""AdamW on a tower's vision part, in fp32 whatever its precision, the same on any number of processes."""

import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from amp.run.world import world
from amp.towers import Tower

RATE, BETAS, CLIP = 0.01, (0.9, 0.98), 1.0  # the rate is a share of the mean size of the tower's matrices
WARM_UP = 0.1  # of the steps
AVERAGED = 0.25  # of the steps: of the last ones, the weights are averaged


class Descent:
    """Steps, taken inside a `with`, at whose end the tower has the average of its last weights, in its own precision.

    Args:
        steps: how many there will be.
    """

    def __init__(self, tower: Tower, steps: int) -> None:
        self._steps, self._done = steps, 0
        self._parameters = [p for p in tower.visual.parameters() if p.is_floating_point()]
        self._before = [(p.detach().clone(), p.requires_grad) for p in self._parameters]

    def __enter__(self) -> Self:
        for parameter in self._parameters:
            parameter.data = parameter.data.float()
            parameter.requires_grad_()
        matrices = [p.detach() for p in self._parameters if p.ndim > 1]
        squared, count = sum(float(p.square().sum()) for p in matrices), sum(p.numel() for p in matrices)
        self._rate = RATE * math.sqrt(squared / count)
        self._optimizer = torch.optim.AdamW(self._parameters, betas=BETAS, weight_decay=0.0)
        self._average = [torch.zeros_like(parameter) for parameter in self._parameters]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for parameter, average, (before, needs_gradient) in zip(
            self._parameters, self._average, self._before, strict=True
        ):
            parameter.data = average.to(before.dtype)
            parameter.grad = None
            parameter.requires_grad_(needs_gradient)

    def step(self, loss: Callable[[], Tensor]) -> None:
        """One step.

        Args:
            loss: -> the mean over this process's images.
        """
        rise = min(1.0, (self._done + 1) / max(1.0, WARM_UP * self._steps))
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * rise * (1 + math.cos(math.pi * self._done / self._steps)) / 2
        self._optimizer.zero_grad()
        loss().backward()
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad = world().sum(parameter.grad) / world().size
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self._done += 1
        self._take_average()

    def _take_average(self) -> None:
        first = self._steps - math.ceil(AVERAGED * self._steps)
        if self._done > first:
            for parameter, average in zip(self._parameters, self._average, strict=True):
                average.lerp_(parameter.detach(), 1 / (self._done - first))

    def undo(self) -> None:
        """Gives the tower the weights that it had."""
        for parameter, (before, _) in zip(self._parameters, self._before, strict=True):
            parameter.data = before
