"""What a scoring needs in memory, before anything is loaded or started."""

import torch
from torch import Tensor

from amp.models.memory import describe_memory, peak_bytes, weight_bytes
from amp.scoring.criterion import load_criterion
from amp.scoring.taylor import TaylorScorer
from amp.settings.prune import PruneConfig
from amp.towers import Tower, build_tower


def backward_bytes(tower: Tower, batch_size: int) -> int:
    """The most that a forward and a backward pass to the activations take at once, beside the weights."""

    def run(images_BCSS: Tensor) -> None:
        with TaylorScorer(tower.slots):
            tower.feature(images_BCSS).sum().backward()

    return peak_bytes(tower, batch_size, run)


def forward_bytes(tower: Tower, batch_size: int) -> int:
    """The most that a forward pass without a graph takes at once, beside the weights."""
    return peak_bytes(tower, batch_size, torch.inference_mode()(tower.feature))


def plan_scoring(tower: Tower, batch_size: int, criterion: str = "entropy") -> dict[str, int]:
    """Bytes on the device while neurons are scored: `{weights, total}`, and what each of the criterion's passes takes.

    The passes come one after another. The criterion's own (B, B) matrices are left out.

    Args:
        tower: on the meta device.
        batch_size: B.
    """
    weights = weight_bytes(tower)
    passes = {name: most(tower, batch_size) for name, most in load_criterion(criterion).PASSES.items()}
    return {"weights": weights, **passes, "total": weights + max(passes.values(), default=0)}


def describe_plan(config: PruneConfig, gpu_gb: float) -> str:
    """The plan on one process as lines, and whether it fits a GPU. Raises UserError where the model is unknown."""
    tower, local = build_tower(config.model, "meta"), config.data.batch_size
    local = min(local, config.score.micro_batch or local)
    plan = plan_scoring(tower, local, config.score.criterion)
    title = f"scoring of {config.model.name} in {config.model.precision} on one process, {local} images at a time"
    return describe_memory([title], plan, gpu_gb, "score.micro_batch, or model.precision: bf16")
