"""Variance of each neuron's activation over tokens and images (VBP, arXiv 2507.12988).

N tokens of a batch, H hidden width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from amp.run.world import world
from amp.scoring.criterion import Scoring, checked
from amp.scoring.memory import forward_bytes
from amp.statistics.hooks import MlpHooks
from amp.towers.mlps.slots import MlpSlot

PASSES = {"activations": forward_bytes}


@torch.no_grad()
def score(scoring: Scoring) -> list[Tensor]:
    """The variance of every neuron's activation. Needs no backward pass."""
    with VarianceScorer(scoring.tower.slots) as scorer:
        for images_BCSS in scoring.steps(scorer):
            for part_BCSS in scoring.parts(images_BCSS):
                scoring.tower.feature(part_BCSS)
        return scorer.scores()


class VarianceScorer(MlpHooks):
    """Sums what the variance of each neuron's activation is made of, while inside `with`.

    Taken at the out-projection's input, after the non-linearity (and gate and norm).

    Attributes:
        sums: (1 + 2H,) fp64 a block, over this process's tokens so far: their number, the sums of the activations, and
            of their squares.
    """

    def __init__(self, slots: Sequence[MlpSlot]) -> None:
        super().__init__(slots)
        device = slots[0].out_projection.weight.device
        self.sums = [torch.zeros(1 + 2 * slot.hidden_width, dtype=torch.float64, device=device) for slot in slots]

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def before_out_projection(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            a_NH = inputs[0].detach().flatten(0, -2).float()
            # The variance within a batch in fp32, so that a large mean takes no digits of it; sums over them in fp64.
            variance_H, mean_H = (moment.double() for moment in torch.var_mean(a_NH, dim=0, correction=0))
            one_1 = mean_H.new_ones(1)
            self.sums[index] += len(a_NH) * torch.cat([one_1, mean_H, variance_H + mean_H.square()])
            return inputs

        return before_out_projection

    def scores(self) -> list[Tensor]:
        """One (H,) fp32 tensor a block, over the tokens of all processes. Raises UserError as `checked`."""
        scores = []
        for sums in self.sums:
            total = world().sum(sums)
            mean_H, square_H = (total[1:] / total[0]).chunk(2)
            scores.append((square_H - mean_H.square()).clamp(min=0).float())
        return checked(self._slots, scores)
