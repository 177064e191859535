"""MLPs pruned and refitted one after another, each on what the blocks before it, pruned already, hand on.

H hidden neurons.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from amp.pruning.refit.ridge import Ridge
from amp.settings.compare import CompareRowSettings
from amp.statistics.moments import MomentCollector, Moments
from amp.towers import MlpSlot, Tower
from amp.towers.residual import block_calls, entering_blocks
from studies.compare import Trial

DAMPING = 1e-3  # of the least squares, as a share of the activations' mean variance


def prune_blocks(trial: Trial, size: float, rank: Callable[[int, MlpSlot, Moments, int], Tensor]) -> Tower:
    """A new tower whose blocks all keep one share of their neurons, the out-projections refitted by ridge.

    Args:
        rank: number of a block, its MLP, moments of its activations, and the width to keep -> neurons (H,), those to
            be kept first. One with a hidden norm is not met.
    """
    widths = trial.widths(CompareRowSettings(criterion="magnitude", allocation="uniform"), size)
    tower = trial.build()
    calls = block_calls(tower, trial.scoring_images[0])
    with torch.no_grad():
        handed = [entering_blocks(tower, images_BCSS) for images_BCSS in trial.scoring_images]
        for block, (slot, call, width) in enumerate(zip(tower.slots, calls, widths, strict=True)):
            with MomentCollector([slot]) as collector:
                for x_BTD in handed:
                    call(x_BTD)
            moments = collector.of(0)
            order_H = rank(block, slot, moments, width)
            ridge = Ridge(slot, order_H, moments, DAMPING)
            slot.keep(order_H[:width].sort().values)
            ridge.apply(slot, width)
            handed = [call(x_BTD) for x_BTD in handed]
    return tower
