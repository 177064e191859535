"""One dense model pruned in many ways to the same sizes, measured before and after the same short distillation.

B images, C classes, N texts, E width of an embedding, D width of a feature, K kept neurons.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.distill.losses import distillation_loss
from amp.distill.optimizer import make_optimizer, rates
from amp.distill.students import share_head
from amp.prune.measure.held_out import HeldOutEntropy
from amp.prune.measure.journal import Journal
from amp.prune.measure.networks import NarrowedNetworks, rank
from amp.prune.pruning import choose_widths
from amp.prune.refit import open_compensation
from amp.prune.search import inputs_every
from amp.prune.size import params_of_widths
from amp.run.world import world
from amp.score.scoring import score
from amp.settings.compare import CompareConfig, CompareRowSettings
from amp.settings.data import DataSettings
from amp.settings.prune import TargetSettings
from amp.towers import TokenReadout, Tower, after_last_block, build_tower

Widths = list[int]
Quality = dict[str, float]


@dataclass(frozen=True)
class Exam:
    """Measures a tower on images held in memory; its text tower is the dense one's.

    Attributes:
        dense: the tower whose features are the target.
        classifier_EC: text embeddings of the classes.
        labelled: (image, class) of every test image.
        captioned: (image, captions) of every scene.
    """

    dense: Tower
    classifier_EC: Tensor
    labelled: Sequence[tuple[Tensor, int]]
    captioned: Sequence[tuple[Tensor, Sequence[str]]]

    @property
    def device(self) -> torch.device:
        return next(self.dense.visual.parameters()).device

    @cached_property
    def _images(self) -> tuple[Tensor, Tensor]:
        labelled_BCHW, captioned_BCHW = (
            torch.stack([image for image, _ in items]).to(self.device, self.dense.dtype)
            for items in (self.labelled, self.captioned)
        )
        return labelled_BCHW, captioned_BCHW

    @cached_property
    @torch.no_grad()
    def _texts(self) -> Tensor:
        assert self.dense.encode_text is not None
        texts = [text for _, captions in self.captioned for text in captions]
        return F.normalize(self.dense.encode_text(self.dense.make_tokenizer()(texts).to(self.device)).float(), dim=-1)

    @cached_property
    @torch.no_grad()
    def _features(self) -> Tensor:
        return self.dense.feature(self._images[1])

    @torch.no_grad()
    def __call__(self, tower: Tower) -> Quality:
        """`{top1, recall1, cosine}`: zero-shot, text to image, and mean cosine of the features to the dense ones."""
        assert tower.encode_image is not None
        _, captioned_BCHW = self._images
        owners = [i for i, (_, captions) in enumerate(self.captioned) for _ in captions]
        embeddings_BE = F.normalize(tower.encode_image(captioned_BCHW).float(), dim=-1)
        found_N = (self._texts @ embeddings_BE.T).argmax(dim=1).cpu()
        cosine_B = F.cosine_similarity(tower.feature(captioned_BCHW), self._features)
        return {
            "top1": self.top1(tower),
            "recall1": (found_N == torch.tensor(owners)).double().mean().item(),
            "cosine": cosine_B.mean().item(),
        }

    @torch.no_grad()
    def top1(self, tower: Tower) -> float:
        """Zero-shot accuracy alone."""
        assert tower.encode_image is not None
        classes_B = torch.tensor([label for _, label in self.labelled])
        found_B = (tower.encode_image(self._images[0]).float().cpu() @ self.classifier_EC).argmax(dim=1)
        return (found_B == classes_B).double().mean().item()


@dataclass
class Seed:
    """What one choice of images gives: scores, widths, towers, images to distil on, each made when first needed.

    Attributes:
        seed: of the order of the images, and of random scores.
    """

    config: CompareConfig
    seed: int
    _scores: dict[str, list[Tensor]] = field(default_factory=dict)
    _searches: dict[CompareRowSettings, NarrowedNetworks] = field(default_factory=dict)

    @cached_property
    def dense(self) -> Tower:
        return self.build()

    @cached_property
    def num_params(self) -> int:
        return sum(parameter.numel() for parameter in self.dense.visual.parameters())

    def build(self) -> Tower:
        """The dense tower, a new one."""
        return build_tower(self.config.model, str(world().device))

    def images(self, split: Any, batch_size: int, num_samples: int | None) -> list[Tensor]:
        """Batches (B, C, S, S) in this seed's order."""
        own = self.config.data.model_dump(include=set(DataSettings.model_fields))
        data = DataSettings(**own | {"seed": self.seed, "batch_size": batch_size})
        batches = Batches(list_images(data, split), self.dense.transform, data, num_samples)
        return [images_BCHW.to(world().device, self.dense.dtype) for images_BCHW in batches]

    @cached_property
    def scoring_images(self) -> list[Tensor]:
        return self.images("train", self.config.data.batch_size, self.config.data.num_samples)

    @cached_property
    def held_out_images(self) -> list[Tensor]:
        return self.images("val", self.config.data.batch_size, self.config.data.num_val_samples)

    @cached_property
    def distil_images(self) -> list[Tensor]:
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

    def widths(self, row: CompareRowSettings, size: float) -> Widths:
        """The widths with which the tower keeps `size` of its parameters. Raises UserError where that cannot be."""
        settings = row.model_copy(update={"target": TargetSettings(params=size)})
        return choose_widths(self._candidates(row), settings, self.share)[0]

    def share(self, widths: Sequence[int]) -> float:
        """Of the tower's parameters left at these widths."""
        return params_of_widths(self.dense, widths) / self.num_params

    def prune(self, row: CompareRowSettings, widths: Sequence[int]) -> Tower:
        """A new tower at these widths, compensated as the row says."""
        candidates = self._dense_candidates(row)
        candidates.keep(widths)
        return candidates.tower

    def _candidates(self, row: CompareRowSettings) -> NarrowedNetworks:
        """Those of a row's searches; one size's measurements serve the others."""
        if row not in self._searches:
            self._searches = {row: self._dense_candidates(row)}  # Rows come one after another.
        return self._searches[row]

    def _dense_candidates(self, row: CompareRowSettings) -> NarrowedNetworks:
        tower, scores = self.build(), self.scores(row.criterion)
        scale = self.config.score.inverse_temperature
        meter = HeldOutEntropy(tower, self.held_out_images, scale, every=inputs_every(row))
        compensation = open_compensation(
            tower,
            [rank(score_H) for score_H in scores],
            row,
            lambda: self.images("train", self.config.data.batch_size, row.num_calibration_samples),
        )
        journal = Journal()
        return NarrowedNetworks(tower, scores, meter, journal, compensation, row.compensate_in_search)

    def distil(self, student: Tower, top1: Callable[[Tower], float]) -> list[tuple[int, float]]:
        """The method's distillation of `student`, in memory. Returns (steps done, top-1), every `measure_every`."""
        settings, head = self.config.distil, after_last_block(build_tower(self.config.model, "meta"))
        share_head(self.dense, student, head)
        trained = [parameter for parameter in student.visual.parameters() if parameter.requires_grad]
        optimizer, readout = make_optimizer(trained, settings.optim), TokenReadout(student)
        per_epoch = len(self.distil_images)
        total = settings.optim.epochs * per_epoch
        curve = []
        for step in range(total):
            lr, weight_decay = rates(step, settings.optim, settings.batch_size, per_epoch)
            optimizer.param_groups[0].update(lr=lr, weight_decay=weight_decay)
            images_BCHW, target_BTD = self.distil_images[step % per_epoch], self.target_tokens[step % per_epoch]
            loss, _, _ = distillation_loss(readout(images_BCHW), target_BTD, student.num_prefix_tokens)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % settings.measure_every == 0 or step + 1 == total:
                curve.append((step + 1, top1(student)))
        return curve
