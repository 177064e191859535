"""Norm of each neuron's weights (structured magnitude pruning); reads no images.

D width, H hidden width.
"""

from torch import Tensor

from amp.scoring.criteria._weights import neuron_rows
from amp.scoring.criterion import Passes, Scoring

PASSES: Passes = {}


def weight_magnitude(in_HD: Tensor, out_DH: Tensor) -> Tensor:
    """(H,) fp32: norm of each neuron's in-projection row times norm of its out-projection column.

    The product is what rescaling a neuron between its two layers leaves as it was.
    """
    return in_HD.float().norm(dim=1) * out_DH.float().norm(dim=0)


def score(scoring: Scoring) -> list[Tensor]:
    """The magnitude of every neuron's weights."""
    return [weight_magnitude(neuron_rows(slot), slot.out_projection.weight) for slot in scoring.tower.slots]
