"""What all compensations share: how a refitted out-projection is put in place, and what it makes of the output's error.

N tokens, H hidden neurons, K kept and R removed ones, D width of the MLP's output.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from amp.statistics.moments import Moments
from amp.towers.mlps.slots import MlpSlot, Slot


class Compensator(ABC):
    """Refits one dense out-projection to any number of its first-ranked inputs. All in fp64.

    Args:
        slot: the MLP or the attention as it is now, before it is sliced.
        order_H: neurons, or what comes from heads, by rank, first to be kept first.

    Attributes:
        weight_DH, mean_H, covariance_HH: in rank order; where no bias can carry a constant, the mean is 0 and the
            second moments are about 0.
    """

    def __init__(self, slot: Slot, order_H: Tensor, moments: Moments) -> None:
        out = slot.out_projection
        self.order_H = order_H.to(moments.mean_H.device)
        self.weight_DH = out.weight.detach().double()[:, self.order_H]
        mean_H, covariance_HH = moments.mean_H, moments.covariance_HH
        if out.bias is None:
            # Nothing can carry a constant: the least squares go through the origin.
            covariance_HH = covariance_HH + torch.outer(mean_H, mean_H)
            mean_H = torch.zeros_like(mean_H)
        self.mean_H = mean_H[self.order_H]
        self.covariance_HH = covariance_HH[self.order_H][:, self.order_H]

    @abstractmethod
    def refit(self, width: int) -> tuple[Tensor, Tensor]:
        """The out-projection of the first `width` neurons, in rank order.

        Returns:
            weight (D, K), and the shift (D,) to add to the bias.
        """

    def errors(self, width: int) -> dict[str, float]:
        """Mean squared error of the output over the calibration tokens: `{without, with}`.

        As a share of the output's variance; where no bias can carry a constant, of its mean square.
        """
        kept_DK, nothing_D = self.weight_DH[:, :width], torch.zeros_like(self.weight_DH[:, 0])
        whole = self._error(self.weight_DH[:, :0], self.weight_DH @ self.mean_H)
        return {
            "without": self._error(kept_DK, nothing_D) / whole,
            "with": self._error(*self.refit(width)) / whole,
        }

    def _error(self, weight_DK: Tensor, shift_D: Tensor) -> float:
        change_DH = -self.weight_DH
        change_DH[:, : weight_DK.shape[1]] += weight_DK
        mean_D = change_DH @ self.mean_H + shift_D
        return float(((change_DH @ self.covariance_HH) * change_DH).sum() + mean_D.square().sum())

    def apply(self, slot: Slot, width: int) -> None:
        """Gives a slot that keeps the first `width` inputs, in ascending order, the refitted out-projection."""
        weight_DK, shift_D = self.refit(width)
        _replace(slot, weight_DK[:, self.order_H[:width].argsort()], shift_D)


class NormedCompensator(ABC):
    """The same for an MLP with a hidden norm, whose kept activations change with what is removed.

    The sliced MLP runs on some of the calibration tokens, and its out-projection is refitted to the dense output.

    Args:
        slot: the MLP as it is now, before it is sliced.
        inputs_ND: tokens that enter it.
    """

    def __init__(self, slot: MlpSlot, inputs_ND: Tensor) -> None:
        self._slot, self._inputs_ND = slot, inputs_ND
        _, self._dense_ND = self._run()

    @abstractmethod
    def refit(self, activations_NK: Tensor, missing_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The out-projection of the slot as it is now: weight (D, K), and the shift (D,) to add to the bias.

        Args:
            activations_NK: that enter it, fp64. missing_ND: the dense output less that of the slot as it is, fp64.
        """

    def errors(self, width: int) -> dict[str, float]:
        """As of `Compensator`; of the slot as it is now, sliced and not compensated."""
        activations_NK, output_ND = self._run()
        weight_DK, shift_D = self.refit(activations_NK, self._dense_ND - output_ND)
        has_bias = self._slot.out_projection.bias is not None
        whole = (self._dense_ND - self._dense_ND.mean(0) * has_bias).square().sum()
        without_ND = self._dense_ND - output_ND
        with_ND = (
            without_ND - activations_NK @ (weight_DK - self._slot.out_projection.weight.double()).T - shift_D * has_bias
        )
        return {"without": float(without_ND.square().sum() / whole), "with": float(with_ND.square().sum() / whole)}

    def apply(self, slot: Slot, width: int) -> None:
        """Refits the out-projection of the slot as it is now, sliced."""
        activations_NK, output_ND = self._run()
        _replace(slot, *self.refit(activations_NK, self._dense_ND - output_ND))

    @torch.no_grad()
    def _run(self) -> tuple[Tensor, Tensor]:
        """The activation that enters the out-projection and the MLP's output, fp64."""
        seen: list[Tensor] = []
        handle = self._slot.out_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            output_1ND = self._slot.module(self._inputs_ND[None])
        finally:
            handle.remove()
        return seen[0][0].double(), output_1ND[0].double()


@torch.no_grad()
def _replace(slot: Slot, weight_DK: Tensor, shift_D: Tensor) -> None:
    """New parameters: a probe puts the whole MLP's own ones back."""
    out = slot.out_projection
    out.weight = nn.Parameter(weight_DK.to(out.weight.dtype), requires_grad=out.weight.requires_grad)
    if out.bias is not None:
        out.bias = nn.Parameter(out.bias + shift_D.to(out.bias.dtype), requires_grad=out.bias.requires_grad)
