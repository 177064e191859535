"""How different each neuron's input weights are from those picked before (DGMR, arXiv 2506.08591); reads no images.

D width, R rows left, H hidden width.
"""

import torch
from scipy.linalg import qr
from torch import Tensor

from amp.run.console import progress
from amp.scoring.criteria._weights import neuron_rows
from amp.scoring.criterion import Passes, Scoring

PASSES: Passes = {}


def weight_diversity(in_HD: Tensor) -> Tensor:
    """(H,) fp32, 1 for the neuron picked first, 1/H for the last: Gram-Schmidt on weights.

    Picks the in-projection row with the largest residual norm, takes its direction off all others, and so on: QR with
    column pivoting. Once the picked rows span all, the rest starts anew with whole rows.
    """
    rest_H = torch.arange(len(in_HD))
    order: list[Tensor] = []
    while len(rest_H):
        rows_RD = in_HD.detach().double().cpu()[rest_H]
        _, pivots = qr(rows_RD.T.numpy(), mode="r", pivoting=True)
        picked, left = torch.from_numpy(pivots).long().tensor_split([min(rows_RD.shape)])
        order.append(rest_H[picked])
        rest_H = rest_H[left].sort().values
    score_H = torch.empty(len(in_HD))
    score_H[torch.cat(order)] = 1 - torch.arange(len(in_HD)) / len(in_HD)
    return score_H


def score(scoring: Scoring) -> list[Tensor]:
    """The diversity of every neuron's weights."""
    return [weight_diversity(neuron_rows(slot)) for slot in progress(scoring.tower.slots, "score", "block")]
