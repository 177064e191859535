"""First-order Taylor scores in one backward pass (AMP, arXiv 2603.08100, section 2).

B images, C channels, S side in pixels, T tokens, H hidden width, D width of the feature.
"""

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.run.world import world
from amp.scoring.contraction import sums_over_tokens
from amp.scoring.criterion import checked
from amp.scoring.recompute import Recomputing, parts_of
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
        self._parts = 1
        self._recomputing = Recomputing()
        self._recomputed: dict[int, Tensor] = {}

    @property
    def num_images(self) -> int:
        """Of this process, so far."""
        return int(self.sums[-1])

    def embed(
        self,
        encode: Callable[[Tensor], Tensor],
        images_BCSS: Tensor,
        blocks: Collection[nn.Module],
        micro_batch: int | None,
    ) -> Tensor:
        """(B, D) what `encode` makes of a batch that one `step` follows, with the graph of a part of it kept whole.

        Args:
            blocks: which are computed once more in the backward pass for all images but `micro_batch`.
            micro_batch: images of one part; None keeps the graph of all.
        """
        *others, last_BCSS = parts_of(images_BCSS, micro_batch)
        self._parts = 1 + len(others)
        with self._recomputing.of(blocks):
            features = [encode(part_BCSS) for part_BCSS in others]
        return torch.cat([*features, encode(last_BCSS)]) if others else encode(last_BCSS)

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def before_out_projection(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            activation_BTH = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
            if self._recomputing.under_way:
                self._recomputed[index] = activation_BTH.detach()
            else:
                self._forwards[index] += 1
                held = [] if self._recomputing.later else [activation_BTH.detach()]
                activation_BTH.register_hook(lambda gradient: self._add(index, held, gradient))
            return (activation_BTH, *inputs[1:])

        return before_out_projection

    def _add(self, index: int, held: list[Tensor], gradient_BTH: Tensor) -> None:
        self._backwards[index] += 1
        activation_BTH = held.pop() if held else self._recomputed.pop(index)
        self.sums[index] += self._fold(sums_over_tokens(activation_BTH, gradient_BTH)).sum(dim=0)

    def step(self, loss: Tensor, num_images: int) -> None:
        """Backward of one batch's scalar loss; `num_images` of it went through this process's forward.

        Raises:
            UserError: the loss is not finite.
            RuntimeError: an out-projection did not run exactly once, or no gradient reached it exactly once.
        """
        told = loss.detach().to("cpu", non_blocking=True)
        arrived = torch.cuda.current_stream(loss.device).record_event() if loss.is_cuda else None
        if loss.requires_grad:
            loss.backward()
        if arrived is not None:
            arrived.synchronize()  # A GPU has the backward pass to do meanwhile.
        if not math.isfinite(told.item()):
            first, last = self.num_images + 1, self.num_images + num_images
            raise UserError(
                "score.criterion",
                f"its value is {told.item()} on a batch (images {first} to {last} of this process); "
                "try model.precision: fp32",
                rank_local=True,
            )
        once = self._parts
        for slot, forwards, backwards in zip(self._slots, self._forwards, self._backwards, strict=True):
            if (forwards, backwards) != (once, once):
                raise RuntimeError(
                    f"block {slot.name}: its MLP ran {forwards} times and got {backwards} gradients in one step, "
                    f"expected {once} and {once}; activation checkpointing or an unused block?"
                )
        self._forwards = [0] * len(self._slots)
        self._backwards = [0] * len(self._slots)
        self._parts = 1
        self.sums[-1] += num_images

    def scores(self) -> list[Tensor]:
        """One (H,) fp32 tensor a block: the mean over the images of all processes. Raises UserError as `checked`."""
        total = world().sum(self.sums[-1].to(self.sums[0].device)).item()
        return checked(self._slots, [world().sum(s) / total for s in self.sums[:-1]])
