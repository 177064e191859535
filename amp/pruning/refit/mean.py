"""Mean shift: the bias receives the mean contribution of the removed neurons (as in VBP, arXiv 2507.12988).

    b += W_R mean(a_R)

H hidden neurons, K kept and R removed ones, D width of the MLP's output, N tokens.
"""

from torch import Tensor

from amp.errors import UserError
from amp.pruning.refit._compensator import Compensator, NormedCompensator
from amp.settings.prune import SearchSettings
from amp.statistics.moments import Moments
from amp.towers.mlps.slots import MlpSlot, Slot


class MeanShift(Compensator):
    """Of a plain MLP. Raises UserError where the out-projection has no bias to shift."""

    def __init__(self, slot: Slot, order_H: Tensor, moments: Moments) -> None:
        if slot.out_projection.bias is None:
            raise UserError(
                "prune.compensation",
                f"mean: the out-projection of block {slot.name} has no bias, which this refit changes",
            )
        super().__init__(slot, order_H, moments)

    def refit(self, width: int) -> tuple[Tensor, Tensor]:
        """As of `Compensator`."""
        return self.weight_DH[:, :width], self.weight_DH[:, width:] @ self.mean_H[width:]


class NormedMeanShift(NormedCompensator):
    """Of an MLP with a hidden norm."""

    def refit(self, activations_NK: Tensor, missing_ND: Tensor) -> tuple[Tensor, Tensor]:
        """As of `NormedCompensator`."""
        return self._slot.out_projection.weight.double(), missing_ND.mean(0)


def plain(settings: SearchSettings, slot: Slot, order_H: Tensor, moments: Moments) -> Compensator:
    """Of heads, or of an MLP whose kept activations do not change with what is removed."""
    return MeanShift(slot, order_H, moments)


def normed(settings: SearchSettings, slot: MlpSlot, inputs_ND: Tensor) -> NormedCompensator:
    """Of an MLP with a hidden norm."""
    return NormedMeanShift(slot, inputs_ND)
