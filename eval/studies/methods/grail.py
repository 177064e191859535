"""Like GRAIL (arXiv 2602.23795), written from the paper's idea: any selection, made good from a Gram matrix.

Neurons of the largest weights stay, one share in every block. Block after block, the Gram matrix of the activations on
calibration images gives the ridge regression by which the kept neurons stand in for all, folded into the
out-projection.
"""

from amp.pruning.measure.networks import rank
from amp.settings.compare import PeerSettings
from amp.towers import Tower
from studies.compare import Trial
from studies.methods._blockwise import prune_blocks

NEEDS: dict[str, str] = {}


def prune(trial: Trial, settings: PeerSettings, size: float) -> Tower:
    """The tower at that size."""
    scores = trial.scores("magnitude")
    return prune_blocks(trial, size, lambda block, slot, moments, width: rank(scores[block]))
