"""What is measured of a network's features and activations.

In the order of a reader's questions: `information_entropy` is the measure that scores and searches share (AMP, arXiv
2603.08100); `MlpHooks` sees what enters the MLPs' out-projections; `MomentCollector` and `TokenCollector` keep
`Moments`, or some tokens, of it; `groups`, of `group_bytes` each, are the blocks whose moments fit in memory at once.
"""

from amp.statistics.entropy import information_entropy
from amp.statistics.hooks import MlpHooks
from amp.statistics.moments import MomentCollector, Moments, TokenCollector, group_bytes, groups

__all__ = [
    "MlpHooks",
    "MomentCollector",
    "Moments",
    "TokenCollector",
    "group_bytes",
    "groups",
    "information_entropy",
]
