"""Moments of the activations of some MLPs, or some of the tokens themselves; for compensation and reconstruction.

N tokens, H hidden neurons, D width of the tower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.run.world import gpu_gigabytes, world
from amp.statistics.hooks import MlpHooks
from amp.towers.mlps.slots import MlpSlot, Slot

GIGABYTES = 16.0  # of a CPU's memory, for the moments of several blocks at once, and what is made of them
SHARE = 0.4  # of a GPU's memory, for the same
STRIPES, NARROWEST = 8, 256  # at most that many stripes a block, that many columns at least


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


class MomentCollector(MlpHooks):
    """Sums first and second moments of the activations of some blocks; its hooks live inside a `with`.

    A sum of a^T a is symmetric: it is kept as stripes of columns, each from its diagonal down, in half the memory.
    Products of a batch are of fp32, from activations in their own precision where the device can.

    Attributes:
        sums: over this process's tokens so far, for each block its stripes, fp64, the sum of a (H,), fp64, and the
            number of tokens, on the CPU; then the same of the tokens `read` alone, where there are any.

    Args:
        asks, num_images: the settings that want the moments and that say of how many images; for messages.
        read: tokens, by their places in an image, that can be counted more than once when all is summed.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        asks: str = "prune.compensation",
        num_images: str = "prune.num_calibration_samples",
        read: Sequence[int] = (),
    ) -> None:
        super().__init__(slots)
        self._asks, self._num_images = asks, num_images
        self._places = [torch.tensor(list(read), device=slot.out_projection.weight.device).long() for slot in slots]
        sizes = [(slot.hidden_width, slot.out_projection.weight.device) for slot in slots]
        self._own = [_Sums(*size) for size in sizes]
        self._read = [_Sums(*size) for size in sizes] if read else []
        self.sums = [total for own in (*self._own, *self._read) for total in own.all]

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            a_BTH = inputs[0].detach()
            self._own[index].add(a_BTH.flatten(0, -2))
            if self._read and a_BTH.ndim == 3:
                self._read[index].add(a_BTH[:, self._places[index]].flatten(0, 1))

        return see

    @property
    def num_tokens(self) -> int:
        """Of this process, so far, of the first of `slots`."""
        return int(self._own[0].num_tokens)

    def of(self, index: int, weight: float = 1.0) -> Moments:
        """Of one of `slots`, the same on every process.

        Args:
            weight: as how many tokens each one of `read` counts.
        Raises:
            UserError: an activation that is not finite, or fewer tokens than the block is wide.
        """
        slot, own = self._slots[index], self._own[index]
        again = self._read[index] if self._read and weight != 1 else None

        def total(place: int) -> Tensor:
            whole = own.all[place].to(own.total_H)
            if again is not None:
                whole = whole + (weight - 1) * again.all[place].to(own.total_H)
            return world().sum(whole)

        num_tokens = int(world().sum(own.num_tokens.to(own.total_H.device)))
        count = total(-1)
        mean_H = total(-2) / count
        covariance_HH = mean_H.new_empty(len(mean_H), len(mean_H))
        for stripe, start in enumerate(_starts(slot.hidden_width)):
            end = start + own.stripes[stripe].shape[1]
            covariance_HH[start:, start:end] = total(stripe)
            covariance_HH[start:end, end:] = covariance_HH[end:, start:end].T
        if not bool(covariance_HH.isfinite().all()):
            raise UserError(self._asks, f"block {slot.name}: an activation is not finite; try model.precision: fp32")
        _check_enough(num_tokens, slot, self._num_images)
        covariance_HH.div_(count).addr_(mean_H, mean_H, alpha=-1)
        return Moments(num_tokens, mean_H, covariance_HH)


class _Sums:
    """Those of one block.

    Attributes:
        all: its stripes, the sum of a, and the number of tokens.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._starts = _starts(width)
        ends = [*self._starts[1:], width]
        self.stripes = [
            torch.zeros(width - start, end - start, dtype=torch.float64, device=device)
            for start, end in zip(self._starts, ends, strict=True)
        ]
        self.total_H = torch.zeros(width, dtype=torch.float64, device=device)
        self.num_tokens = torch.zeros((), dtype=torch.int64)
        self.all = [*self.stripes, self.total_H, self.num_tokens]

    def add(self, a_NH: Tensor) -> None:
        """Activations of some tokens."""
        a_NH = a_NH if _multiplies(a_NH) else a_NH.float()
        self.total_H += a_NH.sum(0, dtype=torch.float32)
        self.num_tokens += len(a_NH)
        for start, stripe_XY in zip(self._starts, self.stripes, strict=True):
            stripe_XY += product(a_NH[:, start:], a_NH[:, start : start + stripe_XY.shape[1]])


def product(a_NX: Tensor, b_NY: Tensor) -> Tensor:
    """a^T b, fp32, from factors in their own precision where the device can, else from fp32."""
    if _multiplies(a_NX):
        return torch.mm(a_NX.T, b_NY, out_dtype=torch.float32)
    return a_NX.float().T @ b_NY.float()


def _multiplies(a_NX: Tensor) -> bool:
    """Whether the device multiplies in this low precision and sums in fp32."""
    return a_NX.is_cuda and a_NX.dtype in (torch.bfloat16, torch.float16)


def _starts(width: int) -> range:
    """Of the stripes, by columns."""
    return range(0, width, max(NARROWEST, -(-width // STRIPES)))


class TokenCollector(MlpHooks):
    """Keeps some of the tokens that enter some MLPs, evenly from all batches; its hooks live inside a `with`.

    As many as four times the hidden width, over all processes.
    """

    def __init__(self, slots: Sequence[MlpSlot]) -> None:
        super().__init__(slots)
        self._mlps = slots
        self._kept: dict[str, list[Tensor]] = {slot.name: [] for slot in slots}

    def _module(self, index: int) -> nn.Linear:
        return self._mlps[index].in_projections[0]

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        kept = self._kept[self._slots[index].name]
        return lambda module, inputs: kept.append(inputs[0].detach().flatten(0, -2))

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


def _check_enough(num_tokens: int, slot: Slot, key: str) -> None:
    if num_tokens <= slot.hidden_width:
        raise UserError(
            key,
            f"{num_tokens} tokens for the {slot.hidden_width} neurons of block "
            f"{slot.name}; more than {slot.hidden_width} are needed: use more images",
        )


def gigabytes_for_moments(gpu_gb: float | None = None) -> float:
    """For the moments of several blocks at once, and what is made of them.

    Args:
        gpu_gb: memory of the GPU that this is asked for; None: of the device at hand.
    """
    gpu_gb = gpu_gb or gpu_gigabytes()
    return GIGABYTES if gpu_gb is None else SHARE * gpu_gb


def last_group(widths: Sequence[int], gigabytes: float, sums: int = 1) -> range:
    """The last blocks, of the given hidden widths, whose moments are held and worked on at once; at least one.

    Args:
        sums: 2 where those of some tokens are held apart, here and below.
    """
    first = len(widths) - 1
    while first > 0 and group_bytes(widths[first - 1 :], sums) <= gigabytes * 1e9:
        first -= 1
    return range(first, len(widths))


def groups(widths: Sequence[int], gigabytes: float, sums: int = 1) -> list[range]:
    """All blocks as such groups, the first blocks first."""
    found: list[range] = []
    last = len(widths)
    while last:
        found.insert(0, last_group(widths[:last], gigabytes, sums))
        last = found[0].start
    return found


def group_bytes(widths: Sequence[int], sums: int = 1) -> int:
    """Memory of the moments of a group of blocks of these hidden widths, and of what is made of one block at a time."""
    return sum(moment_bytes(width, sums) for width in widths) + max(work_bytes(width) for width in widths)


def num_sums(read: Sequence[int]) -> int:
    """Of a block: where some tokens are `read`, their moments are held apart, as `MomentCollector` does."""
    return 2 if read else 1


def moment_bytes(width: int, sums: int = 1) -> int:
    """Memory of the sums of a block of this hidden width."""
    starts = _starts(width)
    return sums * 8 * (width + sum((width - start) * min(starts.step, width - start) for start in starts))


def work_bytes(width: int) -> int:
    """Memory of what is made of one block's moments: four (H, H) matrices in fp64."""
    return 8 * 4 * width**2
