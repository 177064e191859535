"""One threshold on the scores of all blocks, relative to the cost of their neurons and heads.

From the dense tower on, neurons go in units of `width_multiple`, and heads one by one where `prune.attention` says so,
those of the lowest scores for their size first.
"""

from functools import partial

from amp.pruning.allocation._by_scores import allocate_by
from amp.pruning.size import settle

allocate = partial(allocate_by, settle)
