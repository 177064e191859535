"""Scores for a network whose out-projections are refitted: what the feature loses with each neuron, beyond repair.

With ridge (`prune.compensation`) a removed neuron costs only what the kept ones cannot reconstruct of it. To second
order, an error d of an MLP's output moves the unit feature f by d^T G d in square, G = E[sum over tokens of J^T J] with
J = df/d(output), where errors and Jacobians are taken as independent, as in K-FAC (arXiv 1503.05671). With the
covariance C of the activations a, the out-projection W and a set K of kept neurons, that loss is

    tr(G W (C - C_:K C_KK^-1 C_K:) W^T)

Neurons are picked one at a time, each the one that lowers it most (orthogonal least squares, Chen, Billings and Luo
1989; a Cholesky factorisation with this pivoting). No labels are used.

N tokens, D width of the MLP's output, H hidden neurons, E width of the feature.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amp.errors import UserError
from amp.run.world import world
from amp.scoring.criterion import Scoring, checked
from amp.scoring.memory import backward_bytes, forward_bytes
from amp.statistics.hooks import MlpHooks
from amp.statistics.moments import GIGABYTES, MomentCollector, group_bytes, groups
from amp.towers import Tower
from amp.towers.mlps.slots import MlpSlot

DAMPING = 1e-3  # of the activations' covariance, as a share of its mean: compensation's default
STEP = 1 - 2.0**-21  # from one score to the next at least, so that their order outlives fp32
# Neurons that say the same: the share of variance that one leaves of the other, and by which share their gains differ
# at most. Activations and products of a batch are of fp32, and rounded otherwise by another processor; the gain of a
# copy whose original is picked, of which a thousandth (the damping) is left, by a thousand times as much.
SAME, SAME_GAIN = 1e-5, 1e-2


def moment_bytes(tower: Tower, batch_size: int, micro_batch: int) -> int:
    """The most that the second part takes: a forward pass, and the moments of the blocks that are scored together."""
    widths = [slot.hidden_width for slot in tower.slots]
    moments = max(group_bytes([widths[block] for block in group]) for group in groups(widths))
    return moments + forward_bytes(tower, batch_size, micro_batch)


PASSES = {"activations": backward_bytes, "moments": moment_bytes}


def score(scoring: Scoring, gigabytes: float = GIGABYTES) -> list[Tensor]:
    """The fall of E|f - f_pruned|^2 as each neuron is picked, comparable between blocks; later picks have less.

    Takes one backward pass over the images and a forward pass for each group of blocks.

    Args:
        gigabytes: for the moments of several blocks at once; one block's are always taken.
    Raises:
        UserError: an activation or gradient that is not finite, all scores of a block zero, or too few images.
    """
    slots = scoring.tower.slots
    sensitivities = scoring.finished("sensitivities", lambda: _sensitivities(scoring))
    scores: list[Tensor] = []
    for blocks in groups([slot.hidden_width for slot in slots], gigabytes):
        own = slice(blocks.start, blocks.stop)
        work = partial(_score_group, scoring, slots[own], sensitivities[own])
        scores += scoring.finished(f"blocks_{blocks.start}_to_{blocks.stop - 1}", work)
    return checked(slots, scores)


def _score_group(scoring: Scoring, slots: Sequence[MlpSlot], sensitivities: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad(), MomentCollector(slots, "score.criterion", "data.num_samples") as collector:
        for images_BCSS in scoring.steps(collector):
            scoring.tower.feature(images_BCSS)
    scores = []
    for slot, moments, sensitivity_DD in zip(slots, collector.moments(), sensitivities, strict=True):
        covariance_HH = moments.covariance_HH
        if slot.out_projection.bias is None:  # nothing can carry a constant
            covariance_HH = covariance_HH + torch.outer(moments.mean_H, moments.mean_H)
        scores.append(forward_gains(covariance_HH, slot.out_projection.weight.detach().double(), sensitivity_DD))
    return scores


def forward_gains(covariance_HH: Tensor, weight_DH: Tensor, sensitivity_DD: Tensor, damping: float = DAMPING) -> Tensor:
    """(H,) fp32: by how much each neuron, when greedy forward selection picks it, lowers the loss above.

    Bounded by the gain of the pick before it, so that scores fall in the order of the picks. O(H^2 (D + H)) in fp64.
    What never varies, or follows from the picked ones to rounding, scores 0. Of neurons that say the same, the first is
    picked first, however the sums are rounded.

    Args:
        covariance_HH, weight_DH, sensitivity_DD: fp64.
        damping: added to the covariance's diagonal, as a share of its mean.
    """
    values_D, vectors_DD = torch.linalg.eigh(sensitivity_DD)
    root_DD = values_D.clamp(min=0).sqrt()[:, None] * vectors_DD.T
    shift = damping * covariance_HH.diagonal().mean()
    variance_H = covariance_HH.diagonal()
    left_H = variance_H + shift  # what of each neuron's variance the picked ones leave
    change_DH = root_DD @ weight_DH @ covariance_HH + shift * (root_DD @ weight_DH)
    factor_KH = torch.zeros_like(covariance_HH)
    score_H = torch.zeros_like(left_H)
    bound = torch.full_like(shift, torch.inf)
    nothing = 1e-12 * left_H.max().clamp(min=0)
    for k in range(len(covariance_HH)):
        deviation_H = left_H.clamp(min=0).sqrt()
        gain_H = (torch.linalg.vector_norm(change_DH, dim=0) / deviation_H).square()
        gain_H = torch.where(left_H > nothing, gain_H, -1.0)
        best = gain_H.argmax()
        if left_H[best] <= nothing:
            break
        same_H = covariance_HH[best].square() >= (1 - SAME) * variance_H[best] * variance_H
        same_H &= gain_H >= (1 - SAME_GAIN) * gain_H[best]
        same_H[best] = True
        pick = int(same_H.int().argmax())
        bound = torch.minimum(gain_H[pick], bound * STEP)
        score_H[pick] = bound
        column_H = covariance_HH[pick] - factor_KH[:k, pick] @ factor_KH[:k]
        column_H[pick] += shift
        column_H /= deviation_H[pick]
        change_DH.addr_(change_DH[:, pick] / deviation_H[pick], column_H, alpha=-1)
        factor_KH[k] = column_H
        left_H -= column_H.square()
        left_H[pick] = 0
    return score_H.float()


def _sensitivities(scoring: Scoring) -> list[Tensor]:
    """G of every block, (D, D) fp64, of the unit feature, summed over an image's tokens and averaged over images.

    E[J^T v v^T J] = J^T J for v of a standard normal, drawn once an image: one backward pass serves all E directions.
    """
    generator, skipped = torch.Generator().manual_seed(scoring.settings.seed), scoring.num_done
    with SensitivityCollector(scoring.tower.slots) as collector:
        for images_BCSS in scoring.steps(collector):
            local = len(images_BCSS)
            micro_batch = scoring.settings.micro_batch or local
            directions_BE: Tensor | None = None
            for start in range(0, local, micro_batch):
                feature_BE = scoring.tower.feature(images_BCSS[start : start + micro_batch])
                unit_BE = F.normalize(feature_BE.float(), dim=-1)
                if directions_BE is None:
                    # Those of the whole batch on every process, lest they depend on how many there are.
                    for _ in range(1 + skipped):
                        drawn_AE = torch.randn(local * world().size, unit_BE.shape[1], generator=generator)
                    skipped = 0
                    directions_BE = drawn_AE[world().share(len(drawn_AE))].to(unit_BE.device)
                (unit_BE * directions_BE[start : start + len(unit_BE)]).sum().backward()
            collector.sums[-1] += local
    return collector.sensitivities()


class SensitivityCollector(MlpHooks):
    """Sums g g^T over tokens and images, g the gradient at each MLP's output, while inside `with`.

    Attributes:
        sums: (D, D) fp64 a block, over this process's images so far; then their number, on the CPU, which the caller
            counts.
    """

    def __init__(self, slots: Sequence[MlpSlot]) -> None:
        super().__init__(slots)
        sizes = [(slot.out_projection.out_features, slot.out_projection.weight.device) for slot in slots]
        self.sums = [torch.zeros(size, size, dtype=torch.float64, device=device) for size, device in sizes]
        self.sums.append(torch.zeros((), dtype=torch.int64))

    def __enter__(self) -> Self:
        super().__enter__()
        for index, slot in enumerate(self._slots):
            self._handles.append(slot.out_projection.register_full_backward_pre_hook(self._add(index)))
        return self

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        # No parameter needs a gradient: the graph starts at the first block's activation.
        return lambda module, inputs: inputs if inputs[0].requires_grad else (inputs[0].detach().requires_grad_(),)

    def _add(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, gradients: tuple[Tensor, ...]) -> None:
            g_ND = gradients[0].detach().flatten(0, -2).float()
            self.sums[index] += (g_ND.T @ g_ND).double()

        return add

    def sensitivities(self) -> list[Tensor]:
        """(D, D) fp64 a block, averaged over the images of all processes. Raises UserError when one is not finite."""
        num_images = world().sum(self.sums[-1].to(world().device)).item()
        totals = [world().sum(total) for total in self.sums[:-1]]
        for slot, total in zip(self._slots, totals, strict=True):
            if not torch.isfinite(total).all():
                raise UserError(
                    "score.criterion", f"block {slot.name}: a gradient is not finite; try model.precision: fp32"
                )
        return [total / num_images for total in totals]
