"""How much faster picks in pools are than the plain greedy selection, and what they lose; in turns, in one process.

python tests/processes/pick_speed.py [HIDDEN [WIDTH [BLOCKS]]], with PYTHONPATH=.

D width of the MLP's output, H hidden neurons, K picked ones, N tokens.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.run.world import world
from amp.scoring.criteria._picks import DAMPING, SAME, SAME_GAIN, STEP, forward_gains

ROUNDS = 3


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


def problem(seed: int, hidden: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A covariance, an out-projection and a sensitivity as an MLP's, fp64."""
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(3 * hidden, width, generator=generator) * torch.logspace(0, -1.5, width)
    into_DH = torch.randn(width, hidden, generator=generator) * 2 / width**0.5
    a_NH = F.gelu(x_ND @ into_DH - 0.5 + 0.5 * torch.randn(hidden, generator=generator))
    g_ND = (torch.randn(3 * hidden, width, generator=generator) * torch.logspace(0, -2, width)).double()
    weight_DH = torch.randn(width, hidden, generator=generator).double() / hidden**0.5
    found = torch.cov(a_NH.T.double(), correction=0), weight_DH, g_ND.T @ g_ND / len(g_ND)
    return found[0].to(world().device), found[1].to(world().device), found[2].to(world().device)


def main(hidden: int = 1536, width: int = 384, blocks: int = 4) -> None:
    """Prints both seconds a block, how many times as fast, and the worst loss beside the plain selection's."""
    problems = [problem(seed, hidden, width) for seed in range(blocks)]
    stacked = [torch.stack(own) for own in zip(*problems, strict=True)]
    seconds: dict[str, list[float]] = {"pools": [], "exact": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        scores = forward_gains(*stacked).cpu()
        seconds["pools"].append((time.perf_counter() - started) / blocks)
        started = time.perf_counter()
        exact_H = exact_gains(*problems[0]).cpu()
        seconds["exact"].append(time.perf_counter() - started)
    own = [part.cpu() for part in problems[0]]
    orders = [score_H.argsort(descending=True, stable=True) for score_H in (scores[0], exact_H)]
    found, least = (losses_after_each_pick(own[0], own[1], own[2], order_H)[:-1] for order_H in orders)
    pools, exact = (statistics.median(own_seconds) for own_seconds in seconds.values())
    print(f"{hidden} neurons of a width of {width}, {blocks} blocks at once, on {world().device}")
    print(f"picks in pools {pools:.2f} s a block, plain {exact:.2f} s: {exact / pools:.1f} times as fast")
    print(f"loss beside the plain selection's, at worst over all sizes: {float((found / least).max()):.5f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
