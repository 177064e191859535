"""What is measured on a student while it trains: its loss on held-out images, and an accuracy where one is asked for.

B images, C channels, S side in pixels.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from amp.data.batches import Batches, Transform
from amp.data.listing import list_images
from amp.errors import UserError
from amp.run.console import say
from amp.run.world import world
from amp.settings.distill import DistillConfig
from amp.towers import Tower

LOSS = "val_loss"


@dataclass(frozen=True)
class Metric:
    """An accuracy of a tower; the higher, the better.

    Attributes:
        name: in log.jsonl and TensorBoard.
        measure: tower -> the same number on every process. Every process takes its readouts equally often, and not
            for gradients.
    """

    name: str
    measure: Callable[[Tower], float]


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
            student: of `placed`.
            loss: images (B / processes, C, S, S) on the device -> their loss.
        """
        found = {}
        if self.held_out is not None:
            total = torch.zeros((), device=world().device)
            for images_BCHW in self.held_out:
                total += loss(images_BCHW.to(world().device))
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


def placed(
    tower: Tower, readout: nn.Module, dtype: torch.dtype, autocast: Callable[[], AbstractContextManager[Any]]
) -> Tower:
    """The tower as it can be asked where it is placed: feature and embedding by way of its readout, in `autocast`.

    Args:
        readout: of `amp.placement.place`. Under fsdp every process must ask equally often.
        dtype: of its weights.
    """

    def through(read: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def read_placed(images_BCHW: Tensor) -> Tensor:
            with autocast():
                output: Tensor = readout(images_BCHW, read)
            return output

        return read_placed

    embed = tower.encode_image and through(tower.encode_image)
    return replace(tower, dtype=dtype, feature=through(tower.feature), encode_image=embed)


def hold_out(config: DistillConfig, transform: Transform) -> Batches | None:
    """Whole batches of the validation split; None, and a line that says why, where there is none."""
    if config.output.eval_every == 0:
        return None
    num_samples = max(config.output.eval_images, config.data.batch_size)
    try:
        return Batches(list_images(config.data, "val"), transform, config.data, num_samples)
    except UserError as error:
        say(f"no loss on held-out images: {error}")
        return None
