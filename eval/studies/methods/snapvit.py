"""Like SnapViT (arXiv 2510.17700), written from the paper's idea: one shot, by a label-free diagonal second order.

What the unit feature f moves by in square without a neuron is, to second order and without its company,
E[(sum over tokens of a v^T df/da)^2] for v of a standard normal. One threshold over all blocks; no refit. The paper's
correlation between blocks, found by an evolutionary search, is not in it.

B images, E width of the feature.
"""

import torch
import torch.nn.functional as F

from amp.scoring.taylor import TaylorScorer
from amp.settings.compare import CompareRowSettings, PeerSettings
from amp.towers import Tower
from studies.compare import Trial

NEEDS: dict[str, str] = {}


def prune(trial: Trial, settings: PeerSettings, size: float) -> Tower:
    """The tower at that size."""
    scores = trial.kept("snapvit", lambda: _scores(trial))
    return trial.prune_by(scores, CompareRowSettings(allocation="global"), size)


def _scores(trial: Trial) -> list[torch.Tensor]:
    tower, generator = trial.dense, torch.Generator().manual_seed(trial.seed)
    with torch.enable_grad(), TaylorScorer(tower.slots, torch.square) as scorer:
        for images_BCSS in trial.scoring_images:
            unit_BE = F.normalize(tower.feature(images_BCSS).float(), dim=-1)
            directions_BE = torch.randn(unit_BE.shape, generator=generator).to(unit_BE)
            scorer.step((unit_BE * directions_BE).sum(), len(images_BCSS))
        return scorer.scores()
