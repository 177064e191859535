"""One dense model pruned in many ways to the same sizes, and what each is after the same short distillation.

B images, C channels, S side in pixels, T tokens, D width, H hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import Listing
from amp.distillation import Trainer, share_head
from amp.distillation.trainer import NotFiniteError
from amp.errors import under
from amp.models.sizes import count_params
from amp.pruning.measure.held_out import HeldOutEntropy
from amp.pruning.measure.journal import Journal
from amp.pruning.measure.networks import NarrowedNetworks, rank
from amp.pruning.refit import open_compensation
from amp.pruning.search import inputs_every
from amp.pruning.size import counted_size
from amp.pruning.widths import choose_widths
from amp.run.console import warn_here
from amp.run.world import world
from amp.scoring import score, score_heads
from amp.settings.compare import CompareConfig, CompareRowSettings
from amp.settings.data import DataSettings
from amp.settings.prune import TargetSettings
from amp.towers import TokenReadout, Tower, after_last_block, build_tower, in_order, with_attention, with_heads

Widths = list[int]
Kept = TypeVar("Kept")


@dataclass
class Trial:
    """What one choice of images gives: scores, widths, towers, images to distil on, each made when first needed.

    Attributes:
        seed: of the order of the images, and of random scores.
    """

    config: CompareConfig
    seed: int
    _scores: dict[str, list[Tensor]] = field(default_factory=dict)
    _searches: dict[CompareRowSettings, NarrowedNetworks] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def dense(self) -> Tower:
        return self.build()

    @cached_property
    def num_params(self) -> int:
        return count_params(self.dense)

    def build(self) -> Tower:
        """The dense tower, a new one."""
        return build_tower(self.config.model, str(world().device))

    @cached_property
    def _listing(self) -> Listing:
        return Listing(self.config.data)

    def images(self, split: Any, batch_size: int, num_samples: int | None) -> list[Tensor]:
        """Batches (B, C, S, S) in this seed's order."""
        own = self.config.data.model_dump(include=set(DataSettings.model_fields))
        data = DataSettings(**own | {"seed": self.seed, "batch_size": batch_size})
        batches = Batches(self._listing.images(split), self.dense.transform, data, num_samples)
        return [images_BCHW.to(world().device, self.dense.dtype) for images_BCHW in batches]

    @cached_property
    def scoring_images(self) -> list[Tensor]:
        return self.images("train", self.config.data.batch_size, self.config.data.num_samples)

    @cached_property
    def held_out_images(self) -> list[Tensor]:
        return self.images("val", self.config.data.batch_size, self.config.data.num_val_samples)

    @cached_property
    def distil_images(self) -> list[Tensor]:
        assert self.config.distil is not None
        return self.images("train", self.config.distil.batch_size, self.config.distil.num_samples)

    @cached_property
    @torch.no_grad()
    def target_tokens(self) -> list[Tensor]:
        """The dense tower's last tokens on `distil_images`."""
        readout = TokenReadout(self.build())
        return [readout(images_BCHW) for images_BCHW in self.distil_images]

    def scores(self, criterion: Any) -> list[Tensor]:
        """(H,) a block."""
        if criterion not in self._scores:
            settings = self.config.score.model_copy(update={"criterion": criterion, "seed": self.seed})
            self._scores[criterion] = score(self.dense, self.scoring_images, settings)
        return self._scores[criterion]

    @cached_property
    def head_scores(self) -> list[Tensor]:
        """(U,) a block."""
        return score_heads(with_heads(self.dense), self.scoring_images, self.config.score)

    def kept(self, key: str, work: Callable[[], Kept]) -> Kept:
        """What `work` gives, done once for all sizes; `key` is like no other's."""
        if key not in self._kept:
            self._kept[key] = work()
        kept: Kept = self._kept[key]
        return kept

    def widths(self, row: CompareRowSettings, size: float) -> Widths:
        """The `Tower.counts` with which it keeps `size` of its parameters. Raises UserError where that cannot be."""
        return self._widths(self._candidates(row), row, size)

    def _widths(self, networks: NarrowedNetworks, row: CompareRowSettings, size: float) -> Widths:
        settings = row.model_copy(update={"target": TargetSettings(params=size)})
        return choose_widths(networks, settings, counted_size("params", networks.tower))[0]

    def prune_by(self, scores: Sequence[Tensor], row: CompareRowSettings, size: float) -> Tower:
        """A new tower at that size, by scores (H,) a block that stand in for those of the row's criterion."""
        candidates = self._dense_candidates(row, scores)
        candidates.keep(self._widths(candidates, row, size))
        return candidates.tower

    def prune(self, row: CompareRowSettings, widths: Sequence[int]) -> Tower:
        """A new tower with these `counts`, compensated as the row says."""
        candidates = self._dense_candidates(row)
        candidates.keep(widths)
        return candidates.tower

    def _candidates(self, row: CompareRowSettings) -> NarrowedNetworks:
        """Those of a row's searches; one size's measurements serve the others."""
        if row not in self._searches:
            self._searches = {row: self._dense_candidates(row)}  # Rows come one after another.
        return self._searches[row]

    def _dense_candidates(self, row: CompareRowSettings, scores: Sequence[Tensor] | None = None) -> NarrowedNetworks:
        attention = row.attention_by(row.criterion) if scores is None else "none"
        tower = with_attention(self.build(), attention)
        scores = in_order(scores or self.scores(row.criterion), self.head_scores if tower.heads else ())
        scale = self.config.score.inverse_temperature
        meter = HeldOutEntropy(tower, self.held_out_images, scale, every=inputs_every(row))
        compensation = open_compensation(
            tower,
            [slot.inputs_of(rank(score_U)) for slot, score_U in zip(tower.units, scores, strict=True)],
            row,
            lambda: self.images("train", self.config.data.batch_size, row.num_calibration_samples),
        )
        journal = Journal()
        return NarrowedNetworks(tower, scores, meter, journal, compensation, row.compensate_in_search)

    def distil(self, student: Tower, top1: Callable[[Tower], float]) -> list[tuple[int, float]]:
        """The method's distillation of `student`, in memory. Returns (steps done, top-1), every `measure_every`."""
        own, images, targets = self.config.distil, self.distil_images, self.target_tokens
        assert own is not None
        share_head(self.dense, student, after_last_block(build_tower(self.config.model, "meta")))
        curve: list[tuple[int, float]] = []
        with under("distil.optim", instead_of="optim"), under("distil.batch_size", instead_of="data.batch_size"):
            trainer = Trainer(None, student, own.optim, own.batch_size, len(images))
            while trainer.step < trainer.total_steps:
                batch = trainer.step % len(images)
                try:
                    trainer.train_step(images[batch], targets[batch])
                except NotFiniteError as failure:  # One row's end is not that of the comparison.
                    warn_here(f"seed {self.seed}: {failure}; this distillation stops here")
                    return [*curve, (trainer.step, top1(student))]
                if trainer.step % own.measure_every == 0 or trainer.step == trainer.total_steps:
                    curve.append((trainer.step, top1(student)))
        return curve
