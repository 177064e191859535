"""Compensation: what removed neurons carried is, for the most part, a linear function of the kept ones.

The out-projection of a sliced MLP is refitted in closed form, without labels or training, so that the kept neurons and
a constant stand in for the removed ones (mean shift as in VBP, arXiv 2507.12988; ridge reconstruction as in GRAIL,
arXiv 2602.23795, and CORP, arXiv 2602.05243):

    mean:   b += W_R mean(a_R)
    ridge:  W_K += W_R C,  b += W_R c,  with C, c of the least squares a_R ~ C a_K + c, damped

N tokens, H hidden neurons, K kept and R removed ones, D width of the MLP's output.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.run.console import progress
from amp.statistics.moments import GIGABYTES, MomentCollector, Moments, TokenCollector, last_group
from amp.towers.slots import MlpSlot


class Compensator:
    """Refits one dense MLP's out-projection to any number of its first-ranked neurons.

    One Cholesky factor serves every width: the factor of a leading part is the leading part of the factor. All in fp64.
    """

    def __init__(self, slot: MlpSlot, order_H: Tensor, moments: Moments, damping: float | None) -> None:
        """Of the MLP as it is now, before it is sliced.

        Args:
            order_H: neurons by rank, first to be kept first.
            damping: added to the covariance's diagonal, as a share of its mean; None: mean shift alone.
        Raises:
            UserError: the covariance is singular, which a damping above zero cures; or there is no bias to shift.
        """
        out = slot.out_projection
        self.order_H = order_H.to(moments.mean_H.device)
        self.weight_DH = out.weight.detach().double()[:, self.order_H]
        mean_H, covariance_HH = moments.mean_H, moments.covariance_HH
        if out.bias is None:
            if damping is None:
                raise UserError(
                    "prune.compensation", f"mean: the out-projection of block {slot.name} has no bias to shift"
                )
            # Nothing can carry a constant: the least squares go through the origin.
            covariance_HH = covariance_HH + torch.outer(mean_H, mean_H)
            mean_H = torch.zeros_like(mean_H)
        self.mean_H = mean_H[self.order_H]
        self.covariance_HH = covariance_HH[self.order_H][:, self.order_H]
        self._factor_HH = None if damping is None else _factor(self.covariance_HH, damping, slot.name)

    def refit(self, width: int) -> tuple[Tensor, Tensor]:
        """The out-projection of the first `width` neurons, in rank order.

        Returns:
            weight (D, K), and the shift (D,) to add to the bias.
        """
        kept_DK, removed_DR = self.weight_DH[:, :width], self.weight_DH[:, width:]
        shift_D = removed_DR @ self.mean_H[width:]
        if self._factor_HH is None:
            return kept_DK, shift_D
        cross_KD = self.covariance_HH[:width, width:] @ removed_DR.T
        moved_KD = torch.cholesky_solve(cross_KD, self._factor_HH[:width, :width])
        return kept_DK + moved_KD.T, shift_D - self.mean_H[:width] @ moved_KD

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

    def apply(self, slot: MlpSlot, width: int) -> None:
        """Gives a slot that keeps the first `width` neurons, in ascending order, the refitted out-projection."""
        weight_DK, shift_D = self.refit(width)
        _replace(slot, weight_DK[:, self.order_H[:width].argsort()], shift_D)


class NormedCompensator:
    """The same for an MLP with a hidden norm, whose kept activations change with what is removed.

    The sliced MLP runs on some of the calibration tokens, and its out-projection is refitted to the dense output.
    """

    def __init__(self, slot: MlpSlot, inputs_ND: Tensor, damping: float | None) -> None:
        """Of the MLP as it is now, before it is sliced.

        Args:
            inputs_ND: tokens that enter the MLP.
            damping: as of `Compensator`.
        """
        self._slot, self._inputs_ND, self._damping = slot, inputs_ND, damping
        _, self._dense_ND = self._run()

    def errors(self, width: int) -> dict[str, float]:
        """As of `Compensator`; of the slot as it is now, sliced and not compensated."""
        activations_NK, output_ND = self._run()
        weight_DK, shift_D = self._refit(activations_NK, output_ND)
        has_bias = self._slot.out_projection.bias is not None
        whole = (self._dense_ND - self._dense_ND.mean(0) * has_bias).square().sum()
        without_ND = self._dense_ND - output_ND
        with_ND = (
            without_ND - activations_NK @ (weight_DK - self._slot.out_projection.weight.double()).T - shift_D * has_bias
        )
        return {"without": float(without_ND.square().sum() / whole), "with": float(with_ND.square().sum() / whole)}

    def apply(self, slot: MlpSlot, width: int) -> None:
        """Refits the out-projection of the slot as it is now, sliced."""
        _replace(slot, *self._refit(*self._run()))

    def _refit(self, activations_NK: Tensor, output_ND: Tensor) -> tuple[Tensor, Tensor]:
        out = self._slot.out_projection
        missing_ND = self._dense_ND - output_ND
        if self._damping is None:
            return out.weight.double(), missing_ND.mean(0)
        has_bias = out.bias is not None
        mean_K = activations_NK.mean(0) * has_bias
        centred_NK = activations_NK - mean_K
        factor_KK = _factor(centred_NK.T @ centred_NK / len(centred_NK), self._damping, self._slot.name)
        moved_KD = torch.cholesky_solve(centred_NK.T @ missing_ND / len(centred_NK), factor_KK)
        return out.weight.double() + moved_KD.T, missing_ND.mean(0) - mean_K @ moved_KD

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


class Compensation:
    """The compensators of a dense tower's MLPs: as many at a time as memory allows, when one is first asked for.

    Args:
        orders: (H,) a slot: neurons by rank, first to be kept first.
        run: images (B, C, S, S) through the tower.
        batches: calibration images, this process's share.
        damping: None: mean shift alone.
        gigabytes: for the moments of several blocks at once; one block's are always taken.
    """

    def __init__(
        self,
        slots: Sequence[MlpSlot],
        orders: Sequence[Tensor],
        run: Callable[[Tensor], object],
        batches: Collection[Tensor],
        damping: float | None,
        gigabytes: float = GIGABYTES,
    ) -> None:
        self._slots, self._orders, self._run, self._batches = slots, orders, run, batches
        self._damping, self._gigabytes = damping, gigabytes
        self._made: dict[int, Compensator | NormedCompensator] = {}

    def of(self, block: int) -> "Compensator | NormedCompensator":
        """Of a block that, like all before it, is dense; the blocks just before it are prepared with it."""
        if block not in self._made:
            self._made = {}  # The last group goes before the next one comes.
            widths = [slot.hidden_width for slot in self._slots[: block + 1]]
            self._made = self._make(last_group(widths, self._gigabytes))
        return self._made[block]

    def _make(self, group: Sequence[int]) -> "dict[int, Compensator | NormedCompensator]":
        moments, tokens = self._collect(group)
        made: dict[int, Compensator | NormedCompensator] = {}
        for block in group:
            slot = self._slots[block]
            if slot.norm is None:
                made[block] = Compensator(slot, self._orders[block], moments.pop(slot.name), self._damping)
            else:
                made[block] = NormedCompensator(slot, tokens.of(slot), self._damping)
        return made

    def _collect(self, group: Sequence[int]) -> tuple[dict[str, Moments], TokenCollector]:
        plain = [self._slots[block] for block in group if self._slots[block].norm is None]
        normed = [self._slots[block] for block in group if self._slots[block].norm is not None]
        collector, tokens = MomentCollector(plain), TokenCollector(normed)
        with torch.no_grad(), collector, tokens:
            for images_BCHW in progress(self._batches, "calibration", "batch"):
                self._run(images_BCHW)
        return dict(zip((slot.name for slot in plain), collector.moments(), strict=True)), tokens


@torch.no_grad()
def _replace(slot: MlpSlot, weight_DK: Tensor, shift_D: Tensor) -> None:
    """New parameters: a probe puts the whole MLP's own ones back."""
    out = slot.out_projection
    out.weight = nn.Parameter(weight_DK.to(out.weight.dtype), requires_grad=out.weight.requires_grad)
    if out.bias is not None:
        out.bias = nn.Parameter(out.bias + shift_D.to(out.bias.dtype), requires_grad=out.bias.requires_grad)


def _factor(covariance_HH: Tensor, damping: float, name: str) -> Tensor:
    diagonal_H = covariance_HH.diagonal()
    damped_HH = covariance_HH + damping * diagonal_H.mean() * torch.eye(len(diagonal_H)).to(covariance_HH)
    factor_HH, failed = torch.linalg.cholesky_ex(damped_HH)
    if int(failed):
        raise UserError(
            "prune.damping",
            f"{damping}: the activations of block {name} are linearly dependent, or some never vary; "
            "a damping above 0, such as 1e-4, is needed",
        )
    return factor_HH
