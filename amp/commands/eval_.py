"""Evaluates a dense or a pruned model: accuracy, agreement with the dense model, size and speed."""

from amp.commands import choose
from amp.registry import EVALUATIONS

OTHER = {
    "retrieval": "zsc --task zeroshot_retrieval",
    "zeroshot": "zsc",
    "linear": "probe",
    "linear_probe": "probe",
    "speed": "efficiency",
    "models": "compare",
}


def main() -> None:
    choose("amp eval", EVALUATIONS, __doc__, other=OTHER)
