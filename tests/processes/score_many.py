"""Scores the golden network by every other criterion that reads images, on as many processes as run it; for tests.

torchrun --nproc_per_node=2 tests/processes/score_many.py IMAGES OUT
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from conftest import GOLDEN

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.run.world import start, world
from amp.scoring.criteria.cross_entropy import score_classification
from amp.scoring.criterion import Scoring, score
from amp.scoring.scores_file import save_scores
from amp.settings.data import DataSettings
from amp.settings.model import ModelSettings
from amp.settings.score import ScoreSettings
from amp.towers import build_tower


def score_many(images: str, out: Path) -> None:
    """Writes out/{cross_entropy,labels,kl,reconstruction,variance}.safetensors."""
    name, weights = str(GOLDEN / "tiny-clip.json"), str(GOLDEN / "tiny-clip.safetensors")
    tower = build_tower(ModelSettings(frame="open_clip", name=name, pretrained=weights))
    data = DataSettings(name="imagefolder", root=images, batch_size=32, num_workers=0)
    batches = Batches(list_images(data, "train"), tower.transform, data)
    classifier_EC = F.normalize(torch.randn(48, 9, generator=torch.Generator().manual_seed(0)), dim=0)
    local = 32 // world().size
    labels = [
        i % 9 for b in range(2) for i in range(b * 32 + world().rank * local, b * 32 + (world().rank + 1) * local)
    ]
    scoring = Scoring(tower, batches, ScoreSettings())
    found = {
        "cross_entropy": score_classification(scoring, classifier_EC, None),
        "labels": score_classification(scoring, classifier_EC, labels),
        **{name: score(tower, batches, ScoreSettings(criterion=name)) for name in ("kl", "reconstruction", "variance")},
    }
    if world().is_main:
        for criterion, scores in found.items():
            save_scores(scores, {}, out / f"{criterion}.safetensors")


if __name__ == "__main__":
    with start("cpu"):
        score_many(sys.argv[1], Path(sys.argv[2]))
