"""What the runs of libraries share: the gradients that a Taylor importance reads, and the way to a size.

B images, C channels, S side in pixels.
"""

from collections.abc import Callable

import torch

from amp.errors import UserError
from amp.models.sizes import count_params
from amp.statistics.entropy import information_entropy
from amp.towers import Tower
from studies.compare import Trial

TOLERANCE = 0.002  # of the dense tower's parameters
MOST_ATTEMPTS = 16


def accumulate_gradients(trial: Trial, tower: Tower) -> None:
    """Leaves in `.grad` of the vision tower's parameters the mean gradient over the scoring images, and needs no label.

    The loss is AMP's: the information entropy of a batch's features. A library's user has to bring one.
    """
    tower.visual.requires_grad_(True)
    with torch.enable_grad():
        for images_BCSS in trial.scoring_images:
            loss = information_entropy(tower.feature(images_BCSS), trial.config.score.inverse_temperature)
            (loss / len(trial.scoring_images)).backward()


def meet(trial: Trial, size: float, prune: Callable[[float], Tower]) -> Tower:
    """What `prune` gives at the ratio that leaves `size` of the dense parameters, found between two that enclose it.

    Args:
        prune: share of the channels to remove -> a new pruned tower, smaller for larger shares.
    Raises:
        UserError: no ratio leaves as few parameters.
    """
    low, high, best = (0.0, 1.0), (1.0, 0.0), None  # (ratio, share of the parameters that is left)
    for attempt in range(MOST_ATTEMPTS):
        middle = (low[0] + high[0]) / 2
        line = low[0] + (low[1] - size) / (low[1] - high[1]) * (high[0] - low[0])
        tower = prune(middle if attempt % 3 == 2 else line)
        found = (middle if attempt % 3 == 2 else line, count_params(tower) / trial.num_params)
        if found[1] > size + TOLERANCE:
            low = found
            continue
        high, best = found, tower
        if found[1] >= size - TOLERANCE:
            break
    if best is None:
        raise UserError("compare.sizes", f"{size}: the library does not prune as much")
    return best
