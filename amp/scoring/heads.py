"""Scores of attention heads in the measure of the criterion `reconstruction`, so that one budget holds both.

What a head gives is a group g of the inputs of the attention's out-projection. With the damped covariance C of all
inputs, its inverse P, the out-projection W and the sensitivity G at its output, the loss without g, the others
refitted, is

    tr(G B_g^T P_gg^-1 B_g),  B = W^T

Heads go one at a time, each the one whose loss is least; P and B of those that are left follow by one step of
elimination, as in Optimal Brain Surgeon (Hassibi and Stork 1993). The score of a head is what is lost as it goes.

E inputs of the out-projection, D its outputs, U heads of W inputs each, L blocks.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from amp.data.batches import Batches
from amp.run.console import progress
from amp.run.world import world
from amp.scoring.criteria._picks import DAMPING
from amp.scoring.criteria._sensitivity import SensitivityCollector
from amp.scoring.criteria.reconstruction import ASKS, Both, backward_every, covariances, sense, settle
from amp.scoring.criterion import Scoring, checked
from amp.settings.score import ScoreSettings
from amp.statistics.kept_moments import KeptMoments, for_refit, unit_names
from amp.statistics.moments import MomentCollector
from amp.statistics.saved_sums import SavedSums
from amp.towers import Tower

STEP = 1 + 2.0**-20  # from one score to the next at least, so that their order outlives fp32


def score_heads(
    tower: Tower,
    images: Batches | Sequence[Tensor],
    settings: ScoreSettings,
    saved: SavedSums | None = None,
    moments: KeptMoments | None = None,
) -> list[Tensor]:
    """One (U,) fp32 tensor a block, equal on every process: by how much the loss grows as each head goes.

    Takes one backward pass over the first images, as many as `backward_every` says; the moments need no more either,
    since an out-projection of attention has fewer inputs than one of an MLP.

    Args:
        tower: with `heads`.
        images, settings, saved, moments: as of `amp.scoring.Scoring`.
    Raises:
        UserError: an activation or a gradient that is not finite, all scores of a block zero, or too few images.
    """
    whole = Scoring(tower, images, settings, saved, moments)
    few = replace(whole, images=_first(images, -(-len(images) // backward_every(tower, whole.num_images))))
    return checked(tower.heads, few.finished("heads", partial(_scored, few)))


def _first(images: Batches | Sequence[Tensor], count: int) -> Batches | Sequence[Tensor]:
    """The first batches."""
    if isinstance(images, Batches):
        return replace(images, num_samples=count * images.settings.batch_size)
    return images[:count]


def _scored(scoring: Scoring) -> list[Tensor]:
    tower = scoring.tower
    with (
        MomentCollector(tower.heads, *ASKS, tower.read_tokens) as moments,
        SensitivityCollector(tower.heads, tower.read_tokens) as collector,
    ):
        both = Both([*collector.sums, *moments.sums])
        sense(scoring, collector, both)
        settle(scoring, both)
    names, scores = unit_names(len(tower.heads), heads=True)[::2], []
    sensitivities, weights = collector.sensitivities()
    for block, sensitivity_DD in enumerate(progress(sensitivities, "heads", "block")):
        slot = tower.heads[block]
        if scoring.moments is not None:
            scoring.moments.keep(names[block], for_refit(moments, block))
        (covariance_EE,) = covariances(tower.heads, [block], moments, 0, weights)
        weight_DE = slot.out_projection.weight.detach().double()
        scores.append(losses(covariance_EE, weight_DE, sensitivity_DD, slot.num_units).to(world().device))
    return scores


def losses(
    covariance_EE: Tensor, weight_DE: Tensor, sensitivity_DD: Tensor, heads: int, damping: float = DAMPING
) -> Tensor:
    """(U,) fp32: what is lost as each head goes, in the order of their scores.

    Args:
        covariance_EE, weight_DE, sensitivity_DD: fp64.
        damping: added to the covariance's diagonal, as a share of its mean.
    """
    width = len(covariance_EE) // heads
    shift = damping * covariance_EE.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    inverse_EE = torch.linalg.inv(covariance_EE + shift * torch.eye(len(covariance_EE)).to(covariance_EE))
    # Columns of B, and of B G, which an elimination changes alike.
    both_EX = torch.cat([weight_DE.T, weight_DE.T @ sensitivity_DD], 1)
    score_U, left, least = torch.zeros(heads), list(range(heads)), 0.0
    while left:
        number = len(left)
        own_NWW = inverse_EE.view(number, width, number, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        b_NWD, bg_NWD = both_EX.view(number, width, -1).chunk(2, -1)
        lost_N = (torch.linalg.solve(own_NWW, b_NWD) * bg_NWD).sum((1, 2))
        place = int(lost_N.argmin())
        least = max(float(lost_N[place]), STEP * least)
        score_U[left.pop(place)] = least
        gone = torch.zeros(number * width, dtype=torch.bool, device=both_EX.device)
        gone[place * width : (place + 1) * width] = True
        moved_RW = torch.linalg.solve(own_NWW[place], inverse_EE[gone][:, ~gone]).T
        both_EX = both_EX[~gone] - moved_RW @ both_EX[gone]
        inverse_EE = inverse_EE[~gone][:, ~gone] - moved_RW @ inverse_EE[gone][:, ~gone]
    return score_U
