"""Ridge: damped least squares let the kept neurons and the bias replace the removed neurons.

    W_K += W_R C,  b += W_R c,  with C, c of the least squares a_R ~ C a_K + c, damped

As in GRAIL, arXiv 2602.23795, and CORP, arXiv 2602.05243. H hidden neurons, K kept and R removed ones, D width of the
MLP's output, N tokens.
"""

import torch
from torch import Tensor

from amp.pruning.refit._compensator import Compensator, NormedCompensator
from amp.pruning.refit._least_squares import factor
from amp.settings.prune import SearchSettings
from amp.statistics.moments import Moments
from amp.towers.mlps.slots import MlpSlot, Slot


class Ridge(Compensator):
    """Of a plain MLP. One Cholesky factor serves every width: that of a leading part is the leading part of the factor.

    Args:
        damping: added to the covariance's diagonal, as a share of its mean.
    Raises:
        UserError: the covariance is singular, which a damping above zero cures.
    """

    def __init__(self, slot: Slot, order_H: Tensor, moments: Moments, damping: float) -> None:
        super().__init__(slot, order_H, moments)
        self._factor_HH = factor(self.covariance_HH, damping, slot.name)

    def refit(self, width: int) -> tuple[Tensor, Tensor]:
        """As of `Compensator`."""
        kept_DK, removed_DR = self.weight_DH[:, :width], self.weight_DH[:, width:]
        shift_D = removed_DR @ self.mean_H[width:]
        cross_KD = self.covariance_HH[:width, width:] @ removed_DR.T
        moved_KD = torch.cholesky_solve(cross_KD, self._factor_HH[:width, :width])
        return kept_DK + moved_KD.T, shift_D - self.mean_H[:width] @ moved_KD


class NormedRidge(NormedCompensator):
    """Of an MLP with a hidden norm; damping and errors as of `Ridge`."""

    def __init__(self, slot: MlpSlot, inputs_ND: Tensor, damping: float) -> None:
        super().__init__(slot, inputs_ND)
        self._damping = damping

    def refit(self, activations_NK: Tensor, missing_ND: Tensor) -> tuple[Tensor, Tensor]:
        """As of `NormedCompensator`."""
        out = self._slot.out_projection
        has_bias = out.bias is not None
        mean_K = activations_NK.mean(0) * has_bias
        centred_NK = activations_NK - mean_K
        factor_KK = factor(centred_NK.T @ centred_NK / len(centred_NK), self._damping, self._slot.name)
        moved_KD = torch.cholesky_solve(centred_NK.T @ missing_ND / len(centred_NK), factor_KK)
        return out.weight.double() + moved_KD.T, missing_ND.mean(0) - mean_K @ moved_KD


def plain(settings: SearchSettings, slot: Slot, order_H: Tensor, moments: Moments) -> Compensator:
    """Of heads, or of an MLP whose kept activations do not change with what is removed."""
    return Ridge(slot, order_H, moments, settings.damping)


def normed(settings: SearchSettings, slot: MlpSlot, inputs_ND: Tensor) -> NormedCompensator:
    """Of an MLP with a hidden norm."""
    return NormedRidge(slot, inputs_ND, settings.damping)
