"""Measures a dense or a pruned model, by the command that is named."""

from amp.commands import choose
from amp.registry import EVALUATIONS


def main() -> None:
    choose("amp eval", EVALUATIONS, __doc__)
