"""Greedy forward selection of neurons, some at a time, for several MLPs of one width at once.

Each pick is the neuron that most lowers

    tr(G W (C - C_:K C_KK^-1 C_K:) W^T)

with the covariance C of the activations, the out-projection W, the sensitivity G and the picked neurons K: orthogonal
least squares (Chen, Billings and Luo 1989), which is a Cholesky factorisation with this pivoting. The next few picks
are sought among the neurons of the largest gains, on matrices as small as that pool, and one update by matrix products
then tells all others of them. It also gives the gains that these had before each of the picks: those from the first
one on that a neuron outside of the pool would have been better than are taken back. So the picks are those of the plain
greedy selection, to rounding. Nothing is asked of the device from one pick to the next.

L MLPs, D width of the output, H hidden neurons, P of the pool, N picks at a time, K picked ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 1e-3  # of the activations' covariance, as a share of its mean: compensation's default
AT_ONCE, POOL = 64, 256  # picks between two updates of all neurons, at most, and the neurons they are sought among
FEWEST = 8  # picks between two updates, where many are taken back
ROUNDING = 1e-9  # of a gain, by which one outside of the pool may seem larger
STEP = 1 - 2.0**-21  # from one score to the next at least, so that their order outlives fp32
# Neurons that say the same: the share of variance that one leaves of the other, and by which share their gains differ
# at most. Activations and products of a batch are of fp32, and rounded otherwise by another processor; the gain of a
# copy whose original is picked, of which a thousandth (the damping) is left, by a thousand times as much.
SAME, SAME_GAIN = 1e-5, 1e-2
ROWS = 256  # of the covariance, that are compared with all others at once


def forward_gains(
    covariance_LHH: Tensor,
    weight_LDH: Tensor,
    sensitivity_LDD: Tensor,
    damping: float = DAMPING,
    *,
    at_once: int = AT_ONCE,
    pool: int = POOL,
    told: Callable[[int], object] = lambda picks: None,
) -> Tensor:
    """(L, H) fp32: by how much each neuron, when it is picked, lowers the loss above.

    Bounded by the gain of the pick before it, so that scores fall in the order of the picks. O(H^2 (D + H)) in fp64.
    What never varies, or follows from the picked ones to rounding, scores 0. Of neurons that say the same, the first is
    picked first, however the sums are rounded.

    Args:
        covariance_LHH, weight_LDH, sensitivity_LDD: fp64.
        damping: added to the covariance's diagonal, as a share of its mean.
        told: is called with the number of picks of each MLP since the last call.
    """
    selection = _Selection(covariance_LHH, weight_LDH, sensitivity_LDD, damping, at_once)
    left, count = selection.num_left, at_once
    while left:
        taken = selection.pick(min(count, left), max(pool, count))
        count = min(at_once, max(FEWEST, 2 * taken))
        told(left - selection.num_left)
        left = selection.num_left
    return selection.scores()


class _Selection:
    """What is picked so far of L MLPs, and what it leaves.

    Attributes:
        num_left: picks that are left at most, of the MLP that has most.
    """

    def __init__(
        self, covariance_LHH: Tensor, weight_LDH: Tensor, sensitivity_LDD: Tensor, damping: float, at_once: int
    ) -> None:
        self._covariance_LHH = covariance_LHH
        variance_LH = covariance_LHH.diagonal(dim1=1, dim2=2)
        self._shift_L = damping * variance_LH.mean(1)
        self._left_LH = variance_LH + self._shift_L[:, None]  # what of each neuron's variance the picked ones leave
        target_LDH = _roots(sensitivity_LDD) @ weight_LDH
        self._change_LDH = (target_LDH * self._shift_L[:, None, None]).baddbmm_(target_LDH, covariance_LHH)
        num_mlps, hidden, _ = covariance_LHH.shape
        self._factor_LKH = covariance_LHH.new_zeros(num_mlps, hidden + at_once, hidden)
        self._nothing_L1 = 1e-12 * self._left_LH.amax(1, keepdim=True).clamp(min=0)
        self._first_LH = _first_of_the_same(covariance_LHH)
        self._rows_L = torch.arange(len(covariance_LHH), device=covariance_LHH.device)
        self._taken_L = torch.zeros_like(self._rows_L)  # picks, each a row of the factor
        self._num_rows = 0  # of the MLP that has most
        self.num_left = int((self._left_LH > self._nothing_L1).sum(1).max())
        self._picks_LN: list[Tensor] = []
        self._gains_LN: list[Tensor] = []

    def pick(self, count: int, pool: int) -> int:
        """At most `count` neurons of each MLP, sought among `pool`; returns how many they are on average."""
        gain_LH = self._gains(self._change_LDH.square().sum(1), self._left_LH)
        # Those that say the same stand beside each other, lest rounding lets but the last of them in.
        of_first_LH = torch.full_like(gain_LH, -1.0).scatter_reduce(1, self._first_LH, gain_LH, "amax")
        rank_LH = of_first_LH.gather(1, self._first_LH).masked_fill_(gain_LH < 0, -1.0)
        pool_LP = rank_LH.sort(dim=1, descending=True, stable=True).indices[:, :pool].sort(dim=1).values
        places_LN, gains_LN, most_LN, factor_LNP = self._pick_in(pool_LP, count)
        picks_LN = pool_LP.gather(1, places_LN)
        there_LN = self._update(picks_LN, most_LN, pool_LP, _columns(factor_LNP, places_LN))
        self._picks_LN.append(picks_LN)
        self._gains_LN.append(torch.where(there_LN, gains_LN, -1.0))
        taken_L = there_LN.sum(1)
        self._taken_L += taken_L
        open_L = (self._left_LH > self._nothing_L1).sum(1)
        numbers = torch.stack([open_L.max(), self._taken_L.max(), taken_L.max(), taken_L.sum()])
        left, self._num_rows, most, total = numbers.tolist()
        self.num_left = left if most else 0
        return int(total / len(taken_L))

    def _gains(self, gram_LXH: Tensor, left_LXH: Tensor) -> Tensor:
        """Of picking each neuron; -1 where nothing is left of it."""
        nothing = self._nothing_L1 if left_LXH.ndim == 2 else self._nothing_L1[:, None]
        return (gram_LXH.clamp(min=0) / left_LXH).masked_fill_(left_LXH <= nothing, -1.0)

    def _pick_in(self, pool_LP: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Greedy picks of the pool: their places in it, their gains and the largest gain before each, -1 where none was
        left, (L, N); rows of the factor.

        A is the covariance of what the picked ones leave of the neurons, Q the Gram matrix of what they leave of the
        targets. A pick with the row l of the factor and h takes l l^T of A, and h l^T + l h^T of Q.
        """
        row_L11 = self._rows_L[:, None, None]
        covariance_LPP = self._covariance_LHH[row_L11, pool_LP[:, :, None], pool_LP[:, None, :]]
        variance_LP = covariance_LPP.diagonal(dim1=1, dim2=2)
        same_LPP = covariance_LPP.square() >= (1 - SAME) * variance_LP[:, :, None] * variance_LP[:, None, :]
        known_LKP = _columns(self._factor_LKH[:, : self._num_rows], pool_LP)
        change_LDP = _columns(self._change_LDH, pool_LP)
        both_L2PP = torch.stack([covariance_LPP, change_LDP.mT @ change_LDP], 1)
        both_L2PP[:, 0].diagonal(dim1=1, dim2=2).add_(self._shift_L[:, None])
        both_L2PP[:, 0].baddbmm_(known_LKP.mT, known_LKP, alpha=-1)
        left_LP, gram_LP = (both_L2PP[:, i].diagonal(dim1=1, dim2=2).clone() for i in (0, 1))
        size = pool_LP.shape[1]
        taken_L2NP = both_L2PP.new_zeros(len(pool_LP), 2, count, size)  # l and h of each pick
        places, gains, most = [], [], []
        for number in range(count):
            gain_LP = self._gains(gram_LP, left_LP)
            most_L1, best_L1 = gain_LP.max(1, keepdim=True)
            same_LP = same_LPP.gather(1, best_L1[:, :, None].expand(-1, -1, size))[:, 0]
            place_L1 = (same_LP & (gain_LP >= (1 - SAME_GAIN) * most_L1)).byte().argmax(1, keepdim=True)
            there_L1 = most_L1 >= 0
            place_L111 = place_L1[:, None, :, None]
            row_L2P = both_L2PP.gather(2, place_L111.expand(-1, 2, -1, size))[:, :, 0]
            own_L2N = taken_L2NP[:, :, :number].gather(3, place_L111.expand(-1, 2, number, -1))[..., 0]
            row_L2P[:, 0] -= (own_L2N[:, :1] @ taken_L2NP[:, 0, :number])[:, 0]
            row_L2P[:, 1] -= (own_L2N.flip(1).flatten(1)[:, None] @ taken_L2NP[:, :, :number].flatten(1, 2))[:, 0]
            deviation_L1 = torch.where(there_L1, left_LP.gather(1, place_L1), torch.inf).sqrt()
            row_L2P /= deviation_L1[:, None]
            l_LP, h_LP = row_L2P[:, 0], row_L2P[:, 1]
            h_LP -= l_LP * (h_LP.gather(1, place_L1) / deviation_L1 / 2)
            taken_L2NP[:, :, number] = row_L2P
            left_LP.addcmul_(l_LP, l_LP, value=-1).scatter_(1, place_L1, 0.0)
            gram_LP.addcmul_(h_LP, l_LP, value=-2)
            places.append(place_L1)
            gains.append(gain_LP.gather(1, place_L1))
            most.append(most_L1)
        return torch.cat(places, 1), torch.cat(gains, 1), torch.cat(most, 1), taken_L2NP[:, 0]

    def _update(self, picks_LN: Tensor, most_LN: Tensor, pool_LP: Tensor, upper_LNN: Tensor) -> Tensor:
        """Tells all neurons of the picks, but of those that are taken back; returns which stay.

        Args:
            most_LN: the largest gain in the pool before each pick, -1 where none was left.
            upper_LNN: columns of the picks in the rows that they add to the factor.
        """
        count = picks_LN.shape[1]
        there_LN = most_LN >= 0
        known_LKH = self._factor_LKH[:, : self._num_rows]
        rows_LNH = self._covariance_LHH[self._rows_L[:, None], picks_LN]
        rows_LNH.scatter_add_(2, picks_LN[:, :, None], self._shift_L[:, None, None].expand(-1, count, 1))
        rows_LNH.baddbmm_(_columns(known_LKH, picks_LN).mT, known_LKH, alpha=-1)
        # Where there was no neuron left to pick, a row of zeros.
        lower_LNN = upper_LNN.mT.tril() * there_LN[:, :, None]
        lower_LNN.diagonal(dim1=1, dim2=2).add_((~there_LN).double())
        rows_LNH = torch.linalg.solve_triangular(lower_LNN, rows_LNH * there_LN[:, :, None], upper=False)
        change_LND = _columns(self._change_LDH, picks_LN).mT * there_LN[:, :, None]
        change_LND = torch.linalg.solve_triangular(lower_LNN, change_LND, upper=False)
        outside_LN = (
            self._gains_on_the_way(rows_LNH, change_LND)
            .scatter_(2, pool_LP[:, None].expand(-1, count, -1), -1.0)
            .amax(2)
        )
        better_LN = outside_LN > most_LN.clamp(min=-0.5) * (1 + ROUNDING)
        better_LN[:, 0] = False
        there_LN &= better_LN.cumsum(1) == 0
        rows_LNH *= there_LN[:, :, None]
        self._change_LDH.baddbmm_(change_LND.mT, rows_LNH, alpha=-1)
        own_LN = self._taken_L[:, None] + torch.arange(count, device=picks_LN.device)
        self._factor_LKH[self._rows_L[:, None], own_LN] = rows_LNH
        self._left_LH -= rows_LNH.square().sum(1)
        stays_LH = torch.ones_like(self._left_LH).scatter_reduce_(1, picks_LN, (~there_LN).double(), "amin")
        self._left_LH *= stays_LH
        return there_LN

    def _gains_on_the_way(self, rows_LNH: Tensor, change_LND: Tensor) -> Tensor:
        """(L, N, H): of all neurons before each of the picks.

        Args:
            rows_LNH: l of each pick. change_LND: what is left of the pick's target, as a share of its deviation.
        """
        moved_LNH = change_LND @ self._change_LDH
        products_LNN = change_LND @ change_LND.mT
        moved_LNH.baddbmm_(products_LNN.tril(-1), rows_LNH, alpha=-1)
        moved_LNH.addcmul_(products_LNN.diagonal(dim1=1, dim2=2)[:, :, None], rows_LNH, value=-0.5)
        fall_LNH = moved_LNH.mul_(rows_LNH).mul_(2)
        gram_LNH = self._change_LDH.square().sum(1)[:, None] - (fall_LNH.cumsum(1) - fall_LNH)
        spent_LNH = rows_LNH.square()
        return self._gains(gram_LNH, self._left_LH[:, None] - (spent_LNH.cumsum(1) - spent_LNH))

    def scores(self) -> Tensor:
        """(L, H) fp32: the gains of the picks, each bounded by the one before, and 0 for the others."""
        score_LH = torch.zeros_like(self._left_LH)
        if self._picks_LN:
            picks_LN, gains_LN = torch.cat(self._picks_LN, 1), torch.cat(self._gains_LN, 1)
            there_LN = gains_LN >= 0
            falling_N = STEP ** torch.arange(picks_LN.shape[1], device=picks_LN.device).double()
            bound_LN = torch.where(there_LN, gains_LN / falling_N, torch.inf).cummin(1).values * falling_N
            score_LH.scatter_reduce_(1, picks_LN, torch.where(there_LN, bound_LN, 0.0), "amax")
        return score_LH.float()


def _columns(matrix_LXH: Tensor, chosen_LN: Tensor) -> Tensor:
    """(L, X, N): of each matrix its own columns."""
    return matrix_LXH.gather(2, chosen_LN[:, None].expand(-1, matrix_LXH.shape[1], -1))


def _roots(matrix_LDD: Tensor) -> Tensor:
    """R with R^T R = each matrix, symmetric and not negative but for rounding."""
    lower_LDD, info_L = torch.linalg.cholesky_ex(matrix_LDD)
    if not info_L.any():
        return lower_LDD.mT
    values_LD, vectors_LDD = torch.linalg.eigh(matrix_LDD)
    return values_LD.clamp(min=0).sqrt()[..., None] * vectors_LDD.mT


def _first_of_the_same(covariance_LHH: Tensor) -> Tensor:
    """(L, H): the first neuron that says the same as each one, which may be itself."""
    variance_LH = covariance_LHH.diagonal(dim1=1, dim2=2)
    found = []
    for start in range(0, covariance_LHH.shape[1], ROWS):
        rows_LRH, own_LR = covariance_LHH[:, start : start + ROWS], variance_LH[:, start : start + ROWS]
        both_LRH = own_LR[:, :, None] * variance_LH[:, None]
        same_LRH = (rows_LRH.square() >= (1 - SAME) * both_LRH) & (both_LRH > 0)
        same_LRH.diagonal(start, dim1=1, dim2=2).fill_(True)
        found.append(same_LRH.byte().argmax(2))
    return torch.cat(found, 1)
