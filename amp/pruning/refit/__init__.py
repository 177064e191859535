"""Compensations, a file each: what removed neurons carried is, for the most part, a linear function of the kept ones.

The out-projection of a sliced MLP is refitted in closed form, without labels or training, so that the kept neurons and
a constant stand in for the removed ones. A file's name is a word of `prune.compensation`; it holds

    plain(settings, slot, order_H, moments) -> Compensator           of an MLP as most have it
    normed(settings, slot, inputs_ND) -> NormedCompensator           of an MLP with a hidden norm

and, where the sliced network is refitted as a whole and a search alone sees each block by itself,

    refit_whole(tower, kept, batches, settings, store, saved)        slices and refits the tower; the blocks' errors
"""

from amp.pruning.refit._compensation import CALIBRATION, Compensation, calibration_sums, open_compensation, refits_whole
from amp.pruning.refit._compensator import Compensator, NormedCompensator

__all__ = [
    "CALIBRATION",
    "Compensation",
    "Compensator",
    "NormedCompensator",
    "calibration_sums",
    "open_compensation",
    "refits_whole",
]
