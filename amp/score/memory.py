"""What a scoring needs in memory, before anything is loaded or started."""

import torch
from torch import Tensor

from amp.models.memory import peak_bytes, weight_bytes
from amp.score.taylor import TaylorScorer
from amp.statistics.moments import group_bytes, groups
from amp.towers import Tower


def plan_scoring(tower: Tower, batch_size: int, criterion: str = "entropy") -> dict[str, int]:
    """Bytes on the device while neurons are scored: `{weights, activations, total}`.

    The criterion's own (B, B) matrices are left out. `moments`, of reconstruction: those of the blocks scored
    together and a forward pass, after the backward passes.

    Args:
        tower: on the meta device.
        batch_size: B.
    """

    def run(images_BCSS: Tensor) -> None:
        with TaylorScorer(tower.slots):
            tower.feature(images_BCSS).sum().backward()

    plan = {"weights": weight_bytes(tower), "activations": peak_bytes(tower, batch_size, run)}
    most = plan["activations"]
    if criterion == "reconstruction":
        widths = [slot.hidden_width for slot in tower.slots]
        moments = max(group_bytes([widths[block] for block in group]) for group in groups(widths))
        plan["moments"] = moments + peak_bytes(tower, batch_size, torch.inference_mode()(tower.feature))
        most = max(most, plan["moments"])
    return {**plan, "total": plan["weights"] + most}
