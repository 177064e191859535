"""First-order Taylor scores in one backward pass (AMP, arXiv 2603.08100, section 2).

B images, T tokens, H hidden width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.run.world import world
from amp.scoring.criterion import checked
from amp.statistics.hooks import MlpHooks
from amp.towers.mlps.slots import MlpSlot

Fold = Callable[[Tensor], Tensor]


def signed_or_absolute(absolute: bool) -> Fold:
    """What `score.absolute` asks for: the absolute value of each image's sum over tokens, or the sum itself."""
    return torch.abs if absolute else torch.positive


class TaylorScorer(MlpHooks):
    """Sums fold(sum over tokens of a * dE/da) per neuron, while inside `with` (AMP, arXiv 2603.08100, section 2).

    a is the input of an MLP's out-projection, (B, T, H). `fold` works on the (B, H) sums over tokens, one row an image,
    before the mean over images: the absolute value (AMP), nothing (signed), or a square (Fisher information). No
    parameter needs a gradient: the graph starts at the first block's activation.

    Attributes:
        sums: (H,) fp32 a block, over this process's images so far; then their number, on the CPU.
    """

    def __init__(self, slots: Sequence[MlpSlot], fold: Fold = torch.abs) -> None:
        super().__init__(slots)
        self._fold = fold
        device = slots[0].out_projection.weight.device
        self.sums = [torch.zeros(slot.hidden_width, device=device) for slot in slots]
        self.sums.append(torch.zeros((), dtype=torch.int64))
        self._forwards = [0] * len(slots)
        self._backwards = [0] * len(slots)
        self._paused = False

    @property
    def num_images(self) -> int:
        """Of this process, so far."""
        return int(self.sums[-1])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, what runs is not scored."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def before_out_projection(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if self._paused:
                return inputs
            activation_BTH = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
            self._forwards[index] += 1
            held = activation_BTH.detach()
            activation_BTH.register_hook(lambda gradient: self._add(index, held, gradient))
            return (activation_BTH, *inputs[1:])

        return before_out_projection

    def _add(self, index: int, activation_BTH: Tensor, gradient_BTH: Tensor) -> None:
        self._backwards[index] += 1
        products_BH = (activation_BTH.float() * gradient_BTH.float()).flatten(1, -2).sum(dim=1)
        self.sums[index] += self._fold(products_BH).sum(dim=0)

    def step(self, loss: Tensor, num_images: int) -> None:
        """Backward of one batch's scalar loss; `num_images` of it went through this process's forward.

        Raises:
            UserError: the loss is not finite.
            RuntimeError: an out-projection did not run exactly once, or no gradient reached it exactly once.
        """
        if not torch.isfinite(loss):
            raise UserError(
                "score.criterion",
                f"it is {loss.item()} on a batch of images; try model.precision: fp32",
                rank_local=True,
            )
        if loss.requires_grad:
            loss.backward()
        for slot, forwards, backwards in zip(self._slots, self._forwards, self._backwards, strict=True):
            if (forwards, backwards) != (1, 1):
                raise RuntimeError(
                    f"block {slot.name}: its MLP ran {forwards} times and got {backwards} gradients in one step, "
                    "expected 1 and 1; activation checkpointing or an unused block?"
                )
        self._forwards = [0] * len(self._slots)
        self._backwards = [0] * len(self._slots)
        self.sums[-1] += num_images

    def scores(self) -> list[Tensor]:
        """One (H,) fp32 tensor a block: the mean over the images of all processes. Raises UserError as `checked`."""
        total = world().sum(self.sums[-1].to(self.sums[0].device)).item()
        return checked(self._slots, [world().sum(s) / total for s in self.sums[:-1]])
