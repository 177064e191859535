"""Time of a scoring's step beside a forward and a backward pass to the activations alone.

B images, C channels, S side in pixels.
"""

import torch
from torch import Tensor

from amp.errors import UserError
from amp.run.world import world
from amp.scoring.criterion import score
from amp.settings.score import ScoreSettings
from amp.statistics.entropy import information_entropy
from amp.towers import Tower
from studies.step import in_turns

SCORING = ("forward and backward",)
BY_BACKWARD = ("entropy", "kl", "cross_entropy")


def time_scoring(
    tower: Tower, settings: ScoreSettings, batch_size: int, num_rounds: int, num_warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of every round: `{step, forward and backward, forward}`, each in turn, on random images.

    The step is that of the settings' criterion, with its micro-batches; the parts take the whole batch at once. What
    they do is what autograd has to: the graph starts at the first block's activation, and nothing is scored.

    Raises:
        UserError: the criterion has no backward pass.
    """
    if settings.criterion not in BY_BACKWARD:
        raise UserError("score.criterion", f"{settings.criterion}: only {', '.join(BY_BACKWARD)} are timed")
    images_BCSS = torch.randn(batch_size // world().size, 3, tower.image_size, tower.image_size)
    images_BCSS = images_BCSS.to(world().device, tower.dtype)
    first = tower.slots[0].out_projection

    def forward() -> None:
        with torch.inference_mode():
            tower.feature(images_BCSS)

    def backward() -> None:
        handle = first.register_forward_pre_hook(_start_graph)
        loss = information_entropy(tower.feature(images_BCSS), settings.inverse_temperature)
        handle.remove()
        loss.backward()

    work = {
        "step": lambda: score(tower, [images_BCSS], settings),
        "forward and backward": backward,
        "forward": forward,
    }
    return in_turns(work, num_rounds, num_warm_up)


def _start_graph(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].detach().requires_grad_(), *inputs[1:])
