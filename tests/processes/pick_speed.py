"""How much faster picks in pools are than the plain greedy selection, and what they lose; in turns, in one process.

python tests/processes/pick_speed.py [HIDDEN [WIDTH [BLOCKS]]], with PYTHONPATH=.:tests
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from helpers.exact_greedy import exact_gains, losses_after_each_pick
from torch import Tensor

from amp.run.world import world
from amp.scoring.criteria._picks import forward_gains

ROUNDS = 3


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
