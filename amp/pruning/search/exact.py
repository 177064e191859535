"""The plain search without the blocks before the one under search: they are dense, and their outputs are kept.

Every number is that of the plain search; about half of the block forwards are saved.
"""

from amp.pruning.search._interface import Search
from amp.pruning.search.plain import judge_on_all

SEARCH = Search(keeps_inputs=True, few_batches=False, judge=judge_on_all)
