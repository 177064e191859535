"""Moments of the activations of some MLPs, or some of the tokens themselves; for compensation and reconstruction.

N tokens, H hidden neurons, D width of the tower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.run.world import world
from amp.statistics.hooks import MlpHooks
from amp.towers.mlps.slots import MlpSlot

GIGABYTES = 16.0  # for the moments of several blocks at once, and what is made of them


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the activation that enters an out-projection, over the calibration tokens of all processes.

    Attributes:
        num_tokens: N.
        mean_H: fp64.
        covariance_HH: fp64, divided by N.
    """

    num_tokens: int
    mean_H: Tensor
    covariance_HH: Tensor


class _TokenHooks(MlpHooks):
    """Sees what enters a Linear of some MLPs token by token."""

    def __init__(self, slots: Sequence[MlpSlot]) -> None:
        super().__init__(slots)

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: self._see(index, inputs[0].detach().flatten(0, -2))

    def _see(self, index: int, tokens_NH: Tensor) -> None:
        raise NotImplementedError


class MomentCollector(_TokenHooks):
    """Sums first and second moments of the activations of some blocks; its hooks live inside a `with`.

    Memory: 8 (H + 1)² bytes a block, on the device: 0.3 GB at H = 6144, 3.4 GB at 20480.

    Attributes:
        sums: (H + 1, H + 1) fp64 a block, over this process's tokens so far: a^T a, a with a one beside the neurons.

    Args:
        asks, num_images: the settings that want the moments and that say of how many images; for messages.
    """

    def __init__(
        self,
        slots: Sequence[MlpSlot],
        asks: str = "prune.compensation",
        num_images: str = "prune.num_calibration_samples",
    ) -> None:
        super().__init__(slots)
        self._asks, self._num_images = asks, num_images
        sizes = [(slot.hidden_width + 1, slot.out_projection.weight.device) for slot in slots]
        self.sums = [torch.zeros(size, size, dtype=torch.float64, device=device) for size, device in sizes]

    def _see(self, index: int, tokens_NH: Tensor) -> None:
        # A constant column beside the neurons: one product gives the moments and the count.
        a_NH = torch.cat([tokens_NH.float(), tokens_NH.new_ones(len(tokens_NH), 1, dtype=torch.float32)], dim=1)
        self.sums[index] += (a_NH.T @ a_NH).double()

    def moments(self) -> list[Moments]:
        """Of every block in the order of `slots`, the same on every process.

        Raises:
            UserError: an activation that is not finite, or fewer tokens than a block is wide.
        """
        return [self._finish(slot, total) for slot, total in zip(self._slots, self.sums, strict=True)]

    def _finish(self, slot: MlpSlot, own: Tensor) -> Moments:
        total = world().sum(own)
        if not bool(total.isfinite().all()):
            raise UserError(self._asks, f"block {slot.name}: an activation is not finite; try model.precision: fp32")
        num_tokens = int(total[-1, -1].item())
        _check_enough(num_tokens, slot, self._num_images)
        total = total / num_tokens
        mean_H = total[-1, :-1]
        return Moments(num_tokens, mean_H, total[:-1, :-1] - torch.outer(mean_H, mean_H))


class TokenCollector(_TokenHooks):
    """Keeps some of the tokens that enter some MLPs, evenly from all batches; its hooks live inside a `with`.

    As many as four times the hidden width, over all processes.
    """

    def __init__(self, slots: Sequence[MlpSlot]) -> None:
        super().__init__(slots)
        self._kept: dict[str, list[Tensor]] = {slot.name: [] for slot in slots}

    def _module(self, slot: MlpSlot) -> nn.Linear:
        return slot.in_projections[0]

    def _see(self, index: int, tokens_NH: Tensor) -> None:
        self._kept[self._slots[index].name].append(tokens_NH)

    def of(self, slot: MlpSlot) -> Tensor:
        """(N, D), the same on every process.

        Raises:
            UserError: fewer tokens than the block is wide.
        """
        own_ND = torch.cat(self._kept[slot.name])
        wanted = 4 * slot.hidden_width // world().size
        chosen_N = torch.linspace(0, len(own_ND) - 1, min(wanted, len(own_ND))).round().long()
        tokens_ND = world().gather(own_ND[chosen_N.to(own_ND.device)])
        _check_enough(len(tokens_ND), slot, "prune.num_calibration_samples")
        return tokens_ND


def _check_enough(num_tokens: int, slot: MlpSlot, key: str) -> None:
    if num_tokens <= slot.hidden_width:
        raise UserError(
            key,
            f"{num_tokens} tokens for the {slot.hidden_width} neurons of block "
            f"{slot.name}; more than {slot.hidden_width} are needed: take more images",
        )


def last_group(widths: Sequence[int], gigabytes: float = GIGABYTES) -> range:
    """The last blocks, of the given hidden widths, whose moments are held and worked on at once; at least one."""
    first = len(widths) - 1
    while first > 0 and group_bytes(widths[first - 1 :]) <= gigabytes * 1e9:
        first -= 1
    return range(first, len(widths))


def groups(widths: Sequence[int], gigabytes: float = GIGABYTES) -> list[range]:
    """All blocks as such groups, the first blocks first."""
    found: list[range] = []
    last = len(widths)
    while last:
        found.insert(0, last_group(widths[:last], gigabytes))
        last = found[0].start
    return found


def group_bytes(widths: Sequence[int]) -> int:
    """Memory of a group of blocks of these hidden widths while what their moments are for is made.

    In fp64: two (H, H) matrices of each block, and four more while one is ordered and factored.
    """
    return 8 * (2 * sum(width**2 for width in widths) + 4 * max(widths) ** 2)
