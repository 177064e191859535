"""Taylor scores of the entropy of each batch's features, the published criterion (AMP, arXiv 2603.08100, section 2).

The entropy itself is `amp.statistics.entropy.information_entropy`: the search measures it too.

B images of this process's share, C channels, S side in pixels, D width.
"""

from torch import Tensor

from amp.run.world import world
from amp.scoring.criterion import Scoring
from amp.scoring.memory import taylor_bytes
from amp.scoring.taylor import TaylorScorer, signed_or_absolute
from amp.statistics.entropy import information_entropy

PASSES = {"activations": taylor_bytes}


def score(scoring: Scoring) -> list[Tensor]:
    """Mean over images of |sum over tokens of a * dE/da|, or of the sum itself where `absolute` is off.

    The gathered rows' entropy is the global one on every process, and the mean of scores over batches of one size is
    the mean over images.
    """
    tower, settings = scoring.tower, scoring.settings
    with TaylorScorer(tower.slots, signed_or_absolute(settings.absolute)) as scorer:
        for images_BCSS in scoring.steps(scorer):
            feature_BD = scorer.embed(tower.feature, images_BCSS, tower.blocks.values(), settings.micro_batch)
            loss = information_entropy(world().gather(feature_BD), settings.inverse_temperature)
            scorer.step(loss, len(images_BCSS))
        return scorer.scores()
