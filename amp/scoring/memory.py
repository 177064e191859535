"""What a scoring needs in memory, before anything is loaded or started."""

from dataclasses import replace

import torch
from torch import Tensor

from amp.models.memory import ASSUMED_GB, describe_memory, peak_bytes, planned_gigabytes, weight_bytes
from amp.scoring.criterion import Load, load_criterion
from amp.scoring.taylor import TaylorScorer
from amp.settings.prune import PruneConfig
from amp.towers import Tower, build_tower


def taylor_bytes(load: Load) -> int:
    """The most that a step of a `TaylorScorer` takes at once, beside the weights."""
    tower, batch_size, micro_batch = load.tower, load.batch_size, load.micro_batch

    def run(images_BCSS: Tensor) -> None:
        with TaylorScorer(tower.slots) as scorer:
            scorer.embed(tower.feature, images_BCSS, tower.blocks.values(), micro_batch).sum().backward()

    if batch_size <= 3 * micro_batch:
        return peak_bytes(tower, batch_size, run)
    two, three = (peak_bytes(tower, parts * micro_batch, run) for parts in (2, 3))
    return three + (three - two) * (batch_size - 3 * micro_batch) // micro_batch  # each further part keeps as much


def backward_bytes(load: Load) -> int:
    """The most that a forward and a backward pass of a micro-batch to the activations take at once, beside the
    weights, and the batch's images."""
    return taylor_bytes(replace(load, batch_size=load.micro_batch)) + _waiting_bytes(load)


def forward_bytes(load: Load) -> int:
    """The most that a forward pass of a micro-batch without a graph takes at once, beside the weights, and the batch's
    images."""
    own = peak_bytes(load.tower, load.micro_batch, torch.inference_mode()(load.tower.feature))
    return own + _waiting_bytes(load)


def _waiting_bytes(load: Load) -> int:
    """Of the images of a batch that are in other parts of it."""
    side = load.tower.image_size
    image = torch.empty(3, side, side, dtype=load.tower.dtype, device="meta")
    return (load.batch_size - load.micro_batch) * image.nbytes


def plan_scoring(
    tower: Tower,
    batch_size: int,
    criterion: str = "entropy",
    micro_batch: int | None = None,
    gpu_gb: float = ASSUMED_GB,
) -> dict[str, int]:
    """Bytes on the device while neurons are scored: `{weights, total}`, and what each of the criterion's passes takes.

    The passes come one after another. The criterion's own (B, B) matrices are left out.

    Args:
        tower: on the meta device.
        batch_size: B.
        micro_batch: as in the settings.
        gpu_gb: the GPU's memory, of which moments may take a share.
    """
    weights, load = weight_bytes(tower), Load(tower, batch_size, min(batch_size, micro_batch or batch_size), gpu_gb)
    passes = {name: most(load) for name, most in load_criterion(criterion).PASSES.items()}
    return {"weights": weights, **passes, "total": weights + max(passes.values(), default=0)}


def describe_plan(config: PruneConfig, asked_gb: float | None) -> str:
    """The plan on one process as lines, and whether it fits a GPU. Raises UserError where the model is unknown.

    Args:
        asked_gb: memory of the GPU; None: of the one at hand.
    """
    tower, size, score = build_tower(config.model, "meta"), config.data.batch_size, config.score
    gpu_gb = planned_gigabytes(asked_gb)
    plan = plan_scoring(tower, size, score.criterion, score.micro_batch, gpu_gb)
    parts = f", score.micro_batch {score.micro_batch}" if score.micro_batch else ""
    title = f"scoring of {config.model.name} in {config.model.precision} on one process, {size} images per batch{parts}"
    return describe_memory([title], plan, gpu_gb, "score.micro_batch, or model.precision: bf16")
