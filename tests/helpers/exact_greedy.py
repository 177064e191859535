"""The plain greedy forward selection that the picks in pools are held against.

D width of the MLP's output, H hidden neurons, K picked ones.
"""

import torch
from torch import Tensor

from amp.scoring.criteria._picks import DAMPING, SAME, SAME_GAIN, STEP


def exact_gains(covariance_HH: Tensor, weight_DH: Tensor, sensitivity_DD: Tensor, damping: float = DAMPING) -> Tensor:
    """(H,) fp32: as `forward_gains` of one MLP, every pick sought among all neurons."""
    values_D, vectors_DD = torch.linalg.eigh(sensitivity_DD)
    root_DD = values_D.clamp(min=0).sqrt()[:, None] * vectors_DD.T
    shift = damping * covariance_HH.diagonal().mean()
    variance_H = covariance_HH.diagonal()
    left_H = variance_H + shift
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


def losses_after_each_pick(
    covariance_HH: Tensor, weight_DH: Tensor, sensitivity_DD: Tensor, order_H: Tensor, damping: float = DAMPING
) -> Tensor:
    """(H + 1,) fp64: the loss that the picks lower, after none, one, ... of `order_H`, by one Cholesky factor."""
    shift = damping * covariance_HH.diagonal().mean()
    damped_HH = covariance_HH + shift * torch.eye(len(covariance_HH), dtype=torch.float64)
    lower_HH = torch.linalg.cholesky(damped_HH[order_H][:, order_H])
    moved_DH = weight_DH[:, order_H] @ lower_HH  # its column k is what pick k takes away
    gains_H = ((sensitivity_DD @ moved_DH) * moved_DH).sum(0)
    return torch.cat([gains_H.flip(0).cumsum(0).flip(0), gains_H.new_zeros(1)])
