"""Scores of neurons for a network whose out-projections are refitted: what the feature loses with each, beyond repair.

With ridge (amp.compensation) a removed neuron costs only what the kept ones cannot reconstruct of it. To second order,
an error d of an MLP's output moves the unit feature f by d^T G d in square, G = E[sum over tokens of J^T J] with
J = df/d(output), where errors and Jacobians are taken as independent, as in K-FAC (arXiv 1503.05671). With the
covariance C of the activations a, the out-projection W and a set K of kept neurons, that loss is

    tr(G W (C - C_:K C_KK^-1 C_K:) W^T)

Neurons are picked one at a time, each the one that lowers it most (orthogonal least squares, Chen, Billings and Luo
1989; a Cholesky factorisation with this pivoting). No labels are used.

N tokens, D width of the MLP's output, H hidden neurons, E width of the feature.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amp.errors import UserError
from amp.run.world import world
from amp.score.taylor import checked
from amp.statistics.hooks import Watcher
from amp.statistics.moments import GIGABYTES, MomentCollector, groups
from amp.towers.slots import MlpSlot

DAMPING = 1e-3  # of the activations' covariance, as a share of its mean: compensation's default
STEP = 1 - 2.0**-21  # from one score to the next at least, so that their order outlives fp32


class SensitivityCollector(Watcher):
    """Sums g g^T over tokens and images, g the gradient at each MLP's output, while inside `with`."""

    def __init__(self, slots: Sequence[MlpSlot]) -> None:
        super().__init__(slots)
        sizes = [(slot.out_projection.out_features, slot.out_projection.weight.device) for slot in slots]
        self._sums = [torch.zeros(size, size, dtype=torch.float64, device=device) for size, device in sizes]

    def __enter__(self) -> Self:
        super().__enter__()
        for index, slot in enumerate(self._slots):
            self._handles.append(slot.out_projection.register_full_backward_pre_hook(self._add(index)))
        return self

    def _watch(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        # No parameter needs a gradient: the graph starts at the first block's activation.
        return lambda module, inputs: inputs if inputs[0].requires_grad else (inputs[0].detach().requires_grad_(),)

    def _add(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, gradients: tuple[Tensor, ...]) -> None:
            g_ND = gradients[0].detach().flatten(0, -2).float()
            self._sums[index] += (g_ND.T @ g_ND).double()

        return add

    def sums(self) -> list[Tensor]:
        """(D, D) fp64 a block, over all processes. Raises UserError when one is not finite."""
        totals = [world().sum(total) for total in self._sums]
        for slot, total in zip(self._slots, totals, strict=True):
            if not torch.isfinite(total).all():
                raise UserError(
                    "score.criterion", f"block {slot.name}: a gradient is not finite; try model.precision: fp32"
                )
        return totals


def reconstruction_scores(
    slots: Sequence[MlpSlot],
    feature: Callable[[Tensor], Tensor],
    batches: Callable[[], Iterable[Tensor]],
    seed: int,
    micro_batch: int | None = None,
    gigabytes: float = GIGABYTES,
) -> list[Tensor]:
    """One (H,) fp32 tensor a block: the fall of E|f - f_pruned|^2 as each neuron is picked; later picks have less.

    Comparable between blocks. Takes one backward pass over the batches and a forward pass for each group of blocks.

    Args:
        batches: -> local shares (B, C, S, S) of the global batches, on the device.
        seed: of the random directions in which the feature's Jacobian is seen, one an image.
        micro_batch: images in one backward pass; None: all.
        gigabytes: for the moments of several blocks at once; one block's are always taken.
    Raises:
        UserError: an activation or gradient that is not finite, all scores of a block zero, or too few images.
    """
    sensitivities = _sensitivities(slots, feature, batches(), seed, micro_batch)
    scores: list[Tensor] = []
    for blocks in groups([slot.hidden_width for slot in slots], gigabytes):
        group = [slots[block] for block in blocks]
        with torch.no_grad(), MomentCollector(group, "score.criterion", "data.num_samples") as collector:
            for images_BCHW in batches():
                feature(images_BCHW)
        for slot, moments in zip(group, collector.moments(), strict=True):
            covariance_HH = moments.covariance_HH
            if slot.out_projection.bias is None:  # nothing can carry a constant
                covariance_HH = covariance_HH + torch.outer(moments.mean_H, moments.mean_H)
            weight_DH = slot.out_projection.weight.detach().double()
            scores.append(forward_gains(covariance_HH, weight_DH, sensitivities[len(scores)]))
    return checked(slots, scores)


def forward_gains(covariance_HH: Tensor, weight_DH: Tensor, sensitivity_DD: Tensor, damping: float = DAMPING) -> Tensor:
    """(H,) fp32: by how much each neuron, when greedy forward selection picks it, lowers the loss above.

    Bounded by the gain of the pick before it, so that scores fall in the order of the picks. O(H^2 (D + H)) in fp64.
    What never varies, or follows from the picked ones to rounding, scores 0.

    Args:
        covariance_HH, weight_DH, sensitivity_DD: fp64.
        damping: added to the covariance's diagonal, as a share of its mean.
    """
    values_D, vectors_DD = torch.linalg.eigh(sensitivity_DD)
    root_DD = values_D.clamp(min=0).sqrt()[:, None] * vectors_DD.T
    shift = damping * covariance_HH.diagonal().mean()
    left_H = covariance_HH.diagonal() + shift  # what of each neuron's variance the picked ones leave
    change_DH = root_DD @ weight_DH @ covariance_HH + shift * (root_DD @ weight_DH)
    factor_KH = torch.zeros_like(covariance_HH)
    score_H = torch.zeros_like(left_H)
    bound = torch.full_like(shift, torch.inf)
    nothing = 1e-12 * left_H.max().clamp(min=0)
    for k in range(len(covariance_HH)):
        deviation_H = left_H.clamp(min=0).sqrt()
        gain_H = (torch.linalg.vector_norm(change_DH, dim=0) / deviation_H).square()
        pick = int(torch.where(left_H > nothing, gain_H, -1.0).argmax())
        if left_H[pick] <= nothing:
            break
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


def _sensitivities(
    slots: Sequence[MlpSlot],
    feature: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    seed: int,
    micro_batch: int | None,
) -> list[Tensor]:
    """G of every block, of the unit feature, summed over an image's tokens and averaged over images.

    E[J^T v v^T J] = J^T J for v of a standard normal: one backward pass serves all E directions.
    """
    generator = torch.Generator().manual_seed(seed)
    num_images = 0
    with SensitivityCollector(slots) as collector:
        for images_BCHW in batches:
            local = len(images_BCHW)
            directions_BE: Tensor | None = None
            for start in range(0, local, micro_batch or local):
                unit_BE = F.normalize(feature(images_BCHW[start : start + (micro_batch or local)]).float(), dim=-1)
                if directions_BE is None:
                    # Those of the whole batch on every process, lest they depend on how many there are.
                    drawn_AE = torch.randn(local * world().size, unit_BE.shape[1], generator=generator)
                    directions_BE = drawn_AE[world().rank * local :][:local].to(unit_BE.device)
                (unit_BE * directions_BE[start : start + len(unit_BE)]).sum().backward()
            num_images += local * world().size
    return [total / num_images for total in collector.sums()]
