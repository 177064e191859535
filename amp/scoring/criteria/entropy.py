"""Taylor scores of the information entropy of each batch's features (AMP, arXiv 2603.08100, section 2).

The entropy itself is `amp.statistics.entropy.information_entropy`: the search measures it too.

B images of this process's share, C channels, S side in pixels, D width.
"""

import torch
from torch import Tensor

from amp.run.world import world
from amp.scoring.criterion import Scoring
from amp.scoring.memory import backward_bytes
from amp.scoring.taylor import TaylorScorer, signed_or_absolute
from amp.statistics.entropy import information_entropy

PASSES = {"activations": backward_bytes}


def score(scoring: Scoring) -> list[Tensor]:
    """Mean over images of |sum over tokens of a * dE/da|, or of the sum itself where `absolute` is off.

    The gathered rows' entropy is the global one on every process, and the mean of scores over batches of one size is
    the mean over images.
    """
    tower, settings = scoring.tower, scoring.settings
    with TaylorScorer(tower.slots, signed_or_absolute(settings.absolute)) as scorer:
        for images_BCSS in scoring.steps(scorer):
            if settings.micro_batch is None or settings.micro_batch >= len(images_BCSS):
                feature_BD = world().gather(tower.feature(images_BCSS))
                scorer.step(information_entropy(feature_BD, settings.inverse_temperature), len(images_BCSS))
            else:
                _step_in_parts(scoring, scorer, images_BCSS.split(settings.micro_batch))
        return scorer.scores()


def _step_in_parts(scoring: Scoring, scorer: TaylorScorer, parts: tuple[Tensor, ...]) -> None:
    """One backward pass a part of the batch, each handed its part of the entropy's gradient at the features of all.

    That gradient comes from a forward pass over the whole batch without a graph.
    """
    feature, inverse_temperature = scoring.tower.feature, scoring.settings.inverse_temperature
    with scorer.paused(), torch.no_grad():
        feature_BD = torch.cat([feature(part_BCSS) for part_BCSS in parts])
    loss = information_entropy(world().gather(feature_BD.requires_grad_()), inverse_temperature)
    (gradient_BD,) = torch.autograd.grad(loss, feature_BD)
    gradients = gradient_BD.split([len(part_BCSS) for part_BCSS in parts])
    for part_BCSS, part_BD in zip(parts, gradients, strict=True):
        scorer.step((feature(part_BCSS) * part_BD).sum(), len(part_BCSS))
