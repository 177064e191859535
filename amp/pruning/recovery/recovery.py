"""Steps of gradient descent on a pruned tower, whatever its compensation, towards what the dense one gives.

    loss = 1 - cos(feature, dense feature) + 0.3 error of the hidden states behind three blocks, of their variance

on average over images. Each step sees other crops of its images: a pruned network learns a few thousand images by heart
all too soon.

B images, C channels, S side in pixels, T tokens, D width of the tower.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amp.data.augmentation import random_crops
from amp.data.batches import Batches
from amp.pruning.recovery._descent import Descent
from amp.run.console import progress, say
from amp.run.world import world
from amp.settings.prune import SearchSettings
from amp.towers import Tower
from amp.towers.copies import duplicate

DEEP = 0.3  # of the loss: the hidden states, of which the feature reads few
LEVELS = (1 / 3, 2 / 3, 0.9)  # of the depth, where they are compared


class Recovery:
    """The recovery of one tower.

    Args:
        tower: dense as yet, of which a copy is kept until `run`.
        batches: images (B, C, S, S), this process's share.
    """

    def __init__(self, tower: Tower, batches: Batches | Sequence[Tensor], settings: SearchSettings) -> None:
        self._tower, self._dense = tower, duplicate(tower)
        self._batches, self._settings = batches, settings
        asked, size = settings.recover_images or len(batches) * self._global_batch(), self._global_batch()
        self._num_batches = min(len(batches), max(1, asked // size))
        if asked != self._num_batches * size:
            say(
                f"note: prune.recover_images: {asked}; only {self._num_batches * size} are used (full batches of "
                f"{size})"
            )

    def _global_batch(self) -> int:
        batches = self._batches
        return batches.settings.batch_size if isinstance(batches, Batches) else len(batches[0]) * world().size

    def run(self) -> None:
        """Changes the weights of the tower's vision part, which is sliced by now.

        All processes take the same steps, each for its share of the images.
        """
        steps = self._settings.recover_steps
        self._descent = Descent(self._tower, steps)
        with self._descent, _Levels(self._dense) as wanted, _Levels(self._tower) as own:
            for images_BCSS in progress(self._views(), "recovery", "step", total=steps):
                self._descent.step(partial(self._loss, images_BCSS, wanted, own))
        del self._dense

    def undo(self) -> None:
        """Gives the tower the weights that it had before `run`."""
        self._descent.undo()

    def _views(self) -> Iterator[Tensor]:
        """The images of each step."""
        generator = torch.Generator().manual_seed(0)
        step = 0
        for epoch in count():
            for images_BCSS in islice(iter(self._batches), self._num_batches):
                if step == self._settings.recover_steps:
                    return
                whole_BCSS = self._taken(images_BCSS)
                crops_BCSS = random_crops(whole_BCSS, generator)
                whole = slice((epoch + world().rank * len(whole_BCSS)) % 2, None, 2)
                crops_BCSS[whole] = whole_BCSS[whole]  # as pruned networks see them, too
                yield crops_BCSS
                step += 1

    def _taken(self, images_BCSS: Tensor) -> Tensor:
        return world().take(images_BCSS).to(self._tower.dtype)

    def _loss(self, images_BCSS: Tensor, wanted: "_Levels", own: "_Levels") -> Tensor:
        """Of this process's images."""
        with torch.no_grad(), world().in_bf16():
            dense_BD = self._dense.feature(images_BCSS)
        with world().in_bf16():
            own_BD = self._tower.feature(images_BCSS.float())
        loss = (1 - F.cosine_similarity(own_BD.float(), dense_BD.float())).mean()
        shares = [_share(own.states[name], wanted_BTD, self._tower) for name, wanted_BTD in wanted.states.items()]
        return loss + DEEP * torch.stack(shares).mean()


class _Levels(ExitStack):
    """What some blocks of a tower hand on, while inside `with`.

    Attributes:
        states: (B, T, D) fp32, of the last run, by the blocks' names.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.states: dict[str, Tensor] = {}
        blocks = list(tower.blocks.items())
        for place in sorted({int(level * len(blocks)) for level in LEVELS}):
            name, block = blocks[place]
            self.callback(block.register_forward_hook(partial(self._see, name)).remove)

    def _see(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.states[name] = (output[0] if isinstance(output, tuple) else output).float()


def _share(own_BTD: Tensor, wanted_BTD: Tensor, tower: Tower) -> Tensor:
    """Squared error, of the variance: of tokens that the feature reads, and of the others, where there are both."""
    read = set(tower.read_tokens)
    sorts = [sorted(read), [place for place in range(wanted_BTD.shape[1]) if place not in read]]
    shares = [
        (own_BTD[:, places] - wanted_BTD[:, places]).square().mean() / _variance(wanted_BTD[:, places].flatten(0, 1))
        for places in sorts
        if places
    ]
    return torch.stack(shares).sum()


def _variance(rows_XD: Tensor) -> Tensor:
    """Mean over D of the variance over all processes' rows, of which each has as many."""
    count = len(rows_XD) * world().size
    off_XD = rows_XD - world().sum(rows_XD.sum(0)) / count
    return world().sum(off_XD.square().sum(0)).mean() / (count - 1)
