"""How far the feature moves with errors of each MLP's output, to first order; apart for the tokens that it reads.

Where the feature reads some tokens alone, such as a class token, errors of the others reach it through attention. Of
these the gradients tell too little, as such errors act together, and gradients take them for independent: beside what
the feature of a ViT does when errors of a refit are put in for real, gradients are right at the class token, and 2.3 to
4 times too small at patches.

N tokens, D width of the MLP's output, L blocks.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.run.world import world
from amp.statistics.hooks import MlpHooks
from amp.statistics.moments import product
from amp.towers.mlps.slots import Slot

INDIRECT = 3.0  # times its gradients, what a token moves the feature that does not read it
MOST = 64.0  # tokens, as which a token counts at most: of one token an image there are few, so that it is noisy


class SensitivityCollector(MlpHooks):
    """Sums g g^T over tokens and images, g the gradient at each MLP's output, while inside `with`.

    Attributes:
        sums: (D, D) fp64 a block, over this process's images so far; the same of the tokens `read` alone, where there
            are any; the numbers of tokens, (2, L), all and read; then the number of images, which the caller counts;
            numbers are on the CPU.

    Args:
        read: tokens that the feature reads, by their places in an image.
    """

    def __init__(self, slots: Sequence[Slot], read: Sequence[int] = ()) -> None:
        super().__init__(slots)
        self._read = list(read)
        sizes = [(slot.out_projection.out_features, slot.out_projection.weight.device) for slot in slots]
        self.sums = [
            torch.zeros(size, size, dtype=torch.float64, device=device)
            for size, device in sizes * (2 if self._read else 1)
        ]
        self._num_tokens_2L = torch.zeros(2, len(slots), dtype=torch.int64)
        self.sums += [self._num_tokens_2L, torch.zeros((), dtype=torch.int64)]

    def __enter__(self) -> Self:
        super().__enter__()
        for index, slot in enumerate(self._slots):
            self._handles.append(slot.out_projection.register_full_backward_pre_hook(self._add(index)))
        return self

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        # No parameter needs a gradient: the graph starts at the first block's activation.
        return lambda module, inputs: inputs if inputs[0].requires_grad else (inputs[0].detach().requires_grad_(),)

    def _add(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, gradients: tuple[Tensor, ...]) -> None:
            g_BTD = gradients[0].detach()
            parts_ND = [g_BTD.flatten(0, -2)]
            if self._read and g_BTD.ndim == 3:
                parts_ND.append(g_BTD[:, self._read].flatten(0, 1))
            for part, g_ND in enumerate(parts_ND):
                self.sums[part * len(self._slots) + index] += product(g_ND, g_ND)
                self._num_tokens_2L[part, index] += len(g_ND)

        return add

    def sensitivities(self) -> tuple[list[Tensor], list[float]]:
        """G of each block, (D, D) fp64, averaged over the images of all processes; and as how many other tokens one
        that the feature reads counts.

        Raises:
            UserError: one is not finite.
        """
        count, num_images = len(self._slots), int(world().sum(self.sums[-1].to(world().device)))
        num_tokens_2L = world().sum(self._num_tokens_2L.to(world().device)).tolist()
        totals = [world().sum(total) / num_images for total in self.sums[:-2]]
        for slot, total in zip(self._slots, totals, strict=False):
            if not torch.isfinite(total).all():
                raise UserError(
                    "score.criterion", f"block {slot.name}: a gradient is not finite; try model.precision: fp32"
                )
        if not self._read:
            return totals, [1.0] * count
        return totals[:count], [
            _weight(*own) for own in zip(totals[:count], totals[count:], *num_tokens_2L, strict=True)
        ]


def _weight(all_DD: Tensor, read_DD: Tensor, num_all: int, num_read: int) -> float:
    """As how many others a token that the feature reads counts, by the sums of g g^T over all and over those read."""
    num_others = num_all - num_read
    if not num_read or not num_others:
        return 1.0
    of_read = float(read_DD.trace()) / num_read
    of_other = INDIRECT * float(all_DD.trace() - read_DD.trace()) / num_others
    return min(MOST, max(1.0, of_read / of_other)) if of_other > 0 else MOST
