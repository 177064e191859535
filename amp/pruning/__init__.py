"""Pruning: widths from scores, a sliced tower, and what it writes.

    with open_networks(run, tower, scores) as networks:     # dense, and narrowed block by block
        pruned = prune(networks, run.config.prune, ...)     # widths, then slices
    write_pruning(run, tower, pruned, ...)

Where things are: `search` decides how many batches a probe takes, `blocks` and `bisection` which width a block gets,
`allocation` what gives widths to all blocks, `size` what a size is and how it is met, `refit` what stands in for the
removed neurons, `measure` how the entropy of a network is measured.
"""

from amp.pruning.measure.held_out import Look
from amp.pruning.measure.open import networks_over, open_networks
from amp.pruning.refit_pruned import refit_pruned
from amp.pruning.report import write_pruning
from amp.pruning.size import relative_size
from amp.pruning.sweep import write_sizes, write_sweep
from amp.pruning.widths import Pruned, check_possible, choose_widths, prune

__all__ = [
    "Look",
    "Pruned",
    "check_possible",
    "choose_widths",
    "networks_over",
    "open_networks",
    "prune",
    "refit_pruned",
    "relative_size",
    "write_pruning",
    "write_sizes",
    "write_sweep",
]
