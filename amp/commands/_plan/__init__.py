"""What a command says before it begins and when it has ended: what it will do with what, about how long that takes, and
what to type next."""

from amp.commands._plan.afterwards import after_distilling, after_pruning
from amp.commands._plan.times import describe_steps, describe_time, estimate_seconds, in_words
from amp.commands._plan.words import (
    describe_distillation,
    describe_pruning,
    describe_scoring,
    describe_slicing,
    named_model,
)

__all__ = [
    "after_distilling",
    "after_pruning",
    "describe_distillation",
    "describe_pruning",
    "describe_scoring",
    "describe_slicing",
    "describe_steps",
    "describe_time",
    "estimate_seconds",
    "in_words",
    "named_model",
]
