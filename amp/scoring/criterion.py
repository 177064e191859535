"""Scores of every hidden neuron of every block, by one of the criteria.

B images of this process's share, H hidden width, C channels, S side in pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from amp.data.batches import Batches
from amp.data.speed import LoopSpeed, in_words
from amp.errors import UserError
from amp.registry import CRITERIA
from amp.run.console import progress, say
from amp.run.world import world
from amp.settings.score import ScoreSettings
from amp.statistics.kept_moments import KeptMoments
from amp.statistics.saved_sums import HasSums, SavedSums
from amp.towers import Tower
from amp.towers.mlps.slots import Slot


@dataclass(frozen=True)
class Load:
    """What a pass over images has to hold.

    Attributes:
        tower: on the meta device.
        batch_size, micro_batch: images of a batch, and of one part of it.
        gpu_gb: the GPU's memory.
    """

    tower: Tower
    batch_size: int
    micro_batch: int
    gpu_gb: float


# The most bytes that each kind of pass over images takes beside the weights.
Passes = Mapping[str, Callable[[Load], int]]

SPEED_EVERY = 8  # batches; one may be waited for longer than another, as workers end theirs together


@dataclass(frozen=True)
class Scoring:
    """What a criterion is handed.

    Attributes:
        tower: the one whose neurons are scored.
        images: global batches, of each this process's share (B, C, S, S); empty where the criterion reads none.
        settings: temperature, seed and the like.
        saved: sums of an earlier, killed run to go on from, and the place of this one's; None keeps nothing.
        moments: take each block's, where the criterion sums some; None keeps none.
    """

    tower: Tower
    images: Batches | Sequence[Tensor]
    settings: ScoreSettings
    saved: SavedSums | None = None
    moments: KeptMoments | None = None

    @property
    def num_done(self) -> int:
        """Batches of the pass under way whose sums are there already."""
        return 0 if self.saved is None else self.saved.num_batches

    @property
    def num_images(self) -> int:
        """Of all batches of a pass, of all processes."""
        return len(self.images) * self._batch_size

    @property
    def _batch_size(self) -> int:
        images = self.images
        return images.settings.batch_size if isinstance(images, Batches) else sum(map(len, images[:1])) * world().size

    def steps(self, scorer: HasSums) -> Iterator[Tensor]:
        """One pass: (B, C, S, S) of each batch, on the device, in the tower's precision, under a progress bar.

        The scorer adds each to its sums, which are taken up where an earlier run left them, and saved now and then.
        """
        start, images = self.num_done, self.images
        if start:
            say(f"resuming after batch {start} of {len(images)}")
        if self.saved is not None:
            self.saved.restore(scorer)
        remaining = images.epoch(0, start) if isinstance(images, Batches) else images[start:]
        moved = (world().take(batch_BCSS).to(self.tower.dtype) for batch_BCSS in remaining)
        speed = LoopSpeed(self._batch_size, world().device)
        bar = progress(speed.watch(moved), "score", "batch", total=len(images), initial=start)
        for done, images_BCSS in enumerate(bar, start + 1):
            yield images_BCSS
            if self.saved is not None:
                self.saved.step(scorer)
            if done % SPEED_EVERY == 0 or done == len(images):
                bar.set_postfix_str(in_words(speed.read(len(images) - done)), refresh=False)

    def parts(self, images_BCSS: Tensor) -> Iterator[Tensor]:
        """A batch's images, as many at once as `score.micro_batch` allows."""
        return iter(images_BCSS.split(self.settings.micro_batch or len(images_BCSS)))

    def finished(self, name: str, work: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """What one of several passes gives, on the device: as an earlier run kept it, or done now and kept.

        Args:
            name: of the pass, like no other's.
            work: goes through `steps` once -> tensors that are equal on every process.
        """
        results = work() if self.saved is None else self.saved.finished(name, work)
        return [result.to(world().device) for result in results]


class Criterion(Protocol):
    """What each module of `criteria/` has.

    Attributes:
        PASSES: the passes over images, and their memory; empty where no image is read.
    """

    PASSES: Passes

    def score(self, scoring: Scoring) -> list[Tensor]:
        """One (H,) fp32 tensor a block, equal on every process; the larger, the more is lost with the neuron."""


def load_criterion(name: str) -> Criterion:
    """The module of `criteria/` with this name."""
    criterion: Criterion = CRITERIA.load(name)
    return criterion


def reads_images(settings: ScoreSettings) -> bool:
    """Whether the criterion needs any."""
    return bool(load_criterion(settings.criterion).PASSES)


def score(
    tower: Tower,
    images: Batches | Sequence[Tensor],
    settings: ScoreSettings,
    saved: SavedSums | None = None,
    moments: KeptMoments | None = None,
) -> list[Tensor]:
    """What `settings.criterion` makes of every neuron: one (H,) fp32 tensor a block, equal on every process.

    Args:
        tower, images, settings, saved, moments: as of `Scoring`.
    Raises:
        UserError: a criterion that this tower does not have, or values that are not finite.
    """
    return load_criterion(settings.criterion).score(Scoring(tower, images, settings, saved, moments))


def checked(slots: Sequence[Slot], scores: list[Tensor]) -> list[Tensor]:
    """The scores. Raises UserError when one is not finite, or when all of a block are zero."""
    for slot, score_H in zip(slots, scores, strict=True):
        if not torch.isfinite(score_H).all():
            raise UserError(
                "score.criterion",
                f"block {slot.name}: a score is not finite, because an activation or a gradient is not; "
                "try model.precision: fp32",
            )
        if not score_H.any():
            raise UserError("score.criterion", f"block {slot.name}: all scores are zero; are all images the same?")
    return scores
