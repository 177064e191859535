"""Uniform random scores, as a baseline."""

import torch
from torch import Tensor

from amp.scoring.criterion import Passes, Scoring

PASSES: Passes = {}


def score(scoring: Scoring) -> list[Tensor]:
    """Scores in [0, 1) that are a function of the seed alone."""
    generator = torch.Generator().manual_seed(scoring.settings.seed)
    return [torch.rand(slot.hidden_width, generator=generator) for slot in scoring.tower.slots]
