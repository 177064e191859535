"""A minute of training, without labels, by which a pruned tower comes closer to the dense one's features."""

from amp.pruning.recovery.recovery import Recovery

__all__ = ["Recovery"]
