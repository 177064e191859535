"""Like OSSCAR (arXiv 2403.12983), written from the paper's idea: which neurons, by a local search on the least squares.

The loss of a set K of kept neurons is what ridge leaves of an out-projection's output,

    tr(W (C - C_:K C_KK^-1 C_K:) W^T)

Neurons leave one at a time, each the one that costs least with the others refitted; then kept and removed ones are
swapped while that lowers the loss. One share of the neurons stays in every block; blocks go first to last.

H hidden neurons, K kept ones, D width of the MLP's output.
"""

import torch
from torch import Tensor

from amp.settings.compare import PeerSettings
from amp.statistics.moments import Moments
from amp.towers import MlpSlot, Tower
from studies.compare import Trial
from studies.methods._blockwise import DAMPING, prune_blocks

NEEDS: dict[str, str] = {}
MOST_SWAPS = 256  # of a block


def prune(trial: Trial, settings: PeerSettings, size: float) -> Tower:
    """The tower at that size."""

    def rank(block: int, slot: MlpSlot, moments: Moments, width: int) -> Tensor:
        weight_DH = slot.out_projection.weight.detach().double()
        covariance_HH = moments.covariance_HH
        if slot.out_projection.bias is None:
            covariance_HH = covariance_HH + torch.outer(moments.mean_H, moments.mean_H)
        kept_K = choose(covariance_HH, weight_DH, width)
        others = torch.ones(len(covariance_HH), dtype=torch.bool, device=kept_K.device)
        others[kept_K] = False
        return torch.cat([kept_K, others.nonzero().flatten()])

    return prune_blocks(trial, size, rank)


def choose(covariance_HH: Tensor, weight_DH: Tensor, width: int, swaps: int = MOST_SWAPS) -> Tensor:
    """Neurons (K,) to keep, ascending: backward elimination, then swaps that lower the loss.

    Args:
        covariance_HH, weight_DH: fp64; the first is damped by `DAMPING` of its mean diagonal.
    """
    search = _Search(covariance_HH, weight_DH)
    while len(search.kept) > width:
        search.remove(int(search.costs().argmin()))
    for _ in range(swaps if width < len(covariance_HH) else 0):
        costs_K = search.costs()
        place = int(costs_K.argmin())
        cost, left = float(costs_K[place]), search.kept[place]
        search.remove(place)
        gains_H = search.gains()
        best = int(gains_H.argmax())
        improves = best != left and float(gains_H[best]) > cost * (1 + 1e-9)
        search.add(best if improves else left)
        if not improves:
            break
    return torch.tensor(sorted(search.kept), device=covariance_HH.device)


class _Search:
    """The kept neurons, the inverse of their covariance, and their refitted weights.

    Attributes:
        kept: neurons, in the order of the inverse's rows.
    """

    def __init__(self, covariance_HH: Tensor, weight_DH: Tensor) -> None:
        damping = DAMPING * covariance_HH.diagonal().mean()
        self._covariance_HH = covariance_HH + damping * torch.eye(len(covariance_HH)).to(covariance_HH)
        self._wanted_HD = self._covariance_HH @ weight_DH.T
        self.kept = list(range(len(covariance_HH)))
        self._inverse_KK = torch.linalg.inv(self._covariance_HH)
        self._refitted_KD = weight_DH.T.clone()

    def costs(self) -> Tensor:
        """(K,) what the loss rises by without each, the others refitted."""
        return self._refitted_KD.square().sum(1) / self._inverse_KK.diagonal()

    def gains(self) -> Tensor:
        """(H,) what the loss falls by with each, all refitted; 0 of those that are kept."""
        cross_HK = self._covariance_HH[:, self.kept]
        left_HD = self._wanted_HD - cross_HK @ self._refitted_KD
        left_H = self._covariance_HH.diagonal() - ((cross_HK @ self._inverse_KK) * cross_HK).sum(1)
        gains_H = left_HD.square().sum(1) / left_H.clamp_min(torch.finfo(left_H.dtype).tiny)
        gains_H[self.kept] = 0
        return gains_H

    def remove(self, place: int) -> None:
        """The neuron at that place of `kept`; the others are refitted."""
        column_K = self._inverse_KK[:, place]
        pivot = column_K[place]
        refitted_KD = self._refitted_KD - torch.outer(column_K / pivot, self._refitted_KD[place])
        inverse_KK = self._inverse_KK - torch.outer(column_K / pivot, column_K)
        stays = [row for row in range(len(self.kept)) if row != place]
        self._refitted_KD, self._inverse_KK = refitted_KD[stays], inverse_KK[stays][:, stays]
        del self.kept[place]

    def add(self, neuron: int) -> None:
        """One that is not kept; all are refitted."""
        cross_K = self._covariance_HH[self.kept, neuron]
        moved_K = self._inverse_KK @ cross_K
        left = self._covariance_HH[neuron, neuron] - cross_K @ moved_K
        own_D = (self._wanted_HD[neuron] - cross_K @ self._refitted_KD) / left
        count = len(self.kept)
        inverse_KK = self._inverse_KK.new_empty(count + 1, count + 1)
        inverse_KK[:count, :count] = self._inverse_KK + torch.outer(moved_K, moved_K) / left
        inverse_KK[count, :count] = inverse_KK[:count, count] = -moved_K / left
        inverse_KK[count, count] = 1 / left
        self._refitted_KD = torch.cat([self._refitted_KD - torch.outer(moved_K, own_D), own_D[None]])
        self._inverse_KK = inverse_KK
        self.kept.append(neuron)
