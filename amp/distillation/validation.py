"""What is measured on a student while it trains: its loss on held-out images, and an accuracy where one is asked for.

B images, C channels, S side in pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amp.data.batches import Batches
from amp.evaluation.student import Metric
from amp.run.world import world
from amp.towers import Tower

LOSS = "val_loss"


@dataclass(frozen=True)
class Validation:
    """What is measured, and which of two students is the better one.

    Attributes:
        held_out: images for the loss, on which the student is not trained.
        metric: what decides in the place of the loss.
    """

    held_out: Batches | None = None
    metric: Metric | None = None

    @torch.no_grad()
    def measure(self, student: Tower, loss: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`{val_loss, NAME of the metric}`, what there is of them.

        Args:
            student: as `Trainer.measurable_student` gives it.
            loss: images (B / processes, C, S, S) on the device -> their loss.
        """
        found = {}
        if self.held_out is not None:
            total = torch.zeros((), device=world().device)
            for images_BCHW in self.held_out:
                total += loss(world().take(images_BCHW))
            found[LOSS] = world().sum(total).item() / world().size / len(self.held_out)
        if self.metric is not None:
            found[self.metric.name] = self.metric.measure(student)
        return found

    def improves(self, found: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Whether what `measure` found is better than the best so far, {} if there is none."""
        key = LOSS if self.metric is None else self.metric.name
        if key not in found or key not in best:
            return key in found
        return found[key] < best[key] if self.metric is None else found[key] > best[key]
