"""Steps of gradient descent on a pruned tower, whatever its compensation, towards what the dense one gives.

    loss = mean over images of 1 - cos(feature of the pruned tower, feature of the dense one)

Each step sees other crops of its images: a pruned network learns a few thousand images by heart all too soon.

B images, C channels, S side in pixels, D width of the feature.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.data.augmentation import random_crops
from amp.data.batches import Batches
from amp.pruning.recovery._descent import Descent
from amp.run.console import progress, say
from amp.run.world import world
from amp.settings.prune import SearchSettings
from amp.towers import Tower
from amp.towers.copies import duplicate


class Recovery:
    """The recovery of one tower.

    Args:
        tower: dense as yet, of which a copy is kept until `run`.
        batches: images (B, C, S, S), this process's share; the last batch is not learned from where there are others.
    """

    def __init__(self, tower: Tower, batches: Batches | Sequence[Tensor], settings: SearchSettings) -> None:
        self._tower, self._dense = tower, duplicate(tower)
        self._batches, self._settings = batches, settings
        most = (
            len(batches) if settings.recover_images is None else max(1, settings.recover_images // self._global_batch())
        )
        self._num_learned = max(1, min(most, len(batches) - 1))

    def _global_batch(self) -> int:
        batches = self._batches
        return batches.settings.batch_size if isinstance(batches, Batches) else len(batches[0]) * world().size

    def run(self) -> bool:
        """Changes the weights of the tower's vision part, which is sliced by now.

        All processes take the same steps, each for its share of the images.

        Returns:
            whether that has brought it closer to the dense one on the images left out; else the weights are as before.
        """
        left_out_BCSS = self._taken(next(islice(iter(self._batches), len(self._batches) - 1, None)))
        before = self._error(left_out_BCSS)
        steps = self._settings.recover_steps
        with Descent(self._tower, steps) as descent:
            for images_BCSS in progress(self._views(), "recovery", "step", total=steps):
                descent.step(partial(self._loss, images_BCSS))
        after = self._error(left_out_BCSS)
        if not after < before:
            descent.undo()
            say("recovery: no step brought the features of images left out closer to the dense network's")
        del self._dense
        return after < before

    def _views(self) -> Iterator[Tensor]:
        """The images of each step."""
        generator = torch.Generator().manual_seed(0)
        step = 0
        for epoch in count():
            for images_BCSS in islice(iter(self._batches), self._num_learned):
                if step == self._settings.recover_steps:
                    return
                whole_BCSS = self._taken(images_BCSS)
                crops_BCSS = random_crops(whole_BCSS, generator)
                crops_BCSS[epoch % 2 :: 2] = whole_BCSS[epoch % 2 :: 2]  # as pruned networks see them, too
                yield crops_BCSS
                step += 1

    def _taken(self, images_BCSS: Tensor) -> Tensor:
        return world().take(images_BCSS).to(self._tower.dtype)

    def _loss(self, images_BCSS: Tensor) -> Tensor:
        """Of this process's images."""
        with torch.no_grad(), world().in_bf16():
            dense_BD = self._dense.feature(images_BCSS)
        own = next(self._tower.visual.parameters()).dtype  # fp32 within the steps
        with world().in_bf16():
            own_BD = self._tower.feature(images_BCSS.to(own))
        return (1 - F.cosine_similarity(own_BD.float(), dense_BD.float())).mean()

    @torch.no_grad()
    def _error(self, images_BCSS: Tensor) -> float:
        """Over all processes."""
        return float(world().sum(self._loss(images_BCSS).double())) / world().size
