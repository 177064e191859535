"""Scores of every hidden neuron: how much the network would lose with it.

In the order of a reader's questions: `score` gives the scores, by the one of `criteria/` that the settings name, of
which each file holds the equation and the way to compute it over many images; `score_heads` gives those of attention
heads; `Scoring` is what a criterion is handed;
`TaylorScorer` is the backward pass that several of them share (AMP, arXiv 2603.08100, section 2); `save_scores`,
`load_scores` and `check_scores` are of `scores.safetensors`; `plan_scoring` tells what memory it takes.
"""

from amp.scoring.criterion import Criterion, Scoring, reads_images, score
from amp.scoring.heads import score_heads
from amp.scoring.memory import describe_plan, plan_scoring
from amp.scoring.scores_file import check_fit, check_scores, load_scores, save_scores
from amp.scoring.taylor import TaylorScorer

__all__ = [
    "Criterion",
    "Scoring",
    "TaylorScorer",
    "check_fit",
    "check_scores",
    "describe_plan",
    "load_scores",
    "plan_scoring",
    "reads_images",
    "save_scores",
    "score",
    "score_heads",
]
