"""NVIDIA ModelOpt (https://github.com/NVIDIA/Model-Optimizer): its FastNAS pruning, the mode that it has for vision.

FastNAS measures how a score falls as each layer is narrowed, and searches for the widths of the best sum of scores
within the budget; in a vision transformer it narrows MLPs. It needs a score, where its examples have a validation
accuracy: here the mean cosine of the features of held-out images to the dense ones, without labels.
"""

import contextlib
import io
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F

from amp.settings.compare import PeerSettings
from amp.towers import Tower
from studies.compare import Trial

NEEDS = {"modelopt": "nvidia-modelopt", "torchprofile": "torchprofile==0.0.4"}
SCORED_IMAGES = 32  # held-out ones; it asks for hundreds of scores


@torch.no_grad()
def prune(trial: Trial, settings: PeerSettings, size: float) -> Tower:
    """The tower at that size or below; its widths are multiples that the library chooses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions that it has not been tested with
        import modelopt.torch.prune as modelopt_prune

    tower = trial.build()
    images_BCSS = torch.cat(trial.held_out_images)[:SCORED_IMAGES]
    target_BD = trial.dense.feature(images_BCSS)

    def score(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return F.cosine_similarity(tower.feature(images_BCSS), target_BD).mean().item()

    own = tempfile.TemporaryDirectory()
    with own as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
        warnings.simplefilter("ignore")
        modelopt_prune.prune(
            tower.visual,
            "fastnas",
            {"params": f"{100 * size:g}%"},
            images_BCSS[:1],
            {
                "score_func": score,
                "data_loader": [images_BCSS],
                "checkpoint": str(Path(folder) / "fastnas.pth"),
                "verbose": False,
            },
        )
    tower.visual.requires_grad_(False)
    return tower
