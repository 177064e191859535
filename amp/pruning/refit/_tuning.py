"""Some steps of gradient descent on one sliced MLP, on tokens that were seen to enter it: in-projections move too.

N tokens, D width of the tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amp.run.world import world
from amp.towers.mlps.slots import MlpSlot

OTHERS = 32  # tokens of an image that are kept, beside those that the feature reads
READ_ROWS, OTHER_ROWS = 256, 768  # tokens of a step
READ_WEIGHT = 32.0  # of a token that the feature reads
RATE, WARM_UP, BETAS = 0.02, 10, (0.9, 0.99)  # the rate of a weight is a share of the mean size of its matrix
LEFT_OUT = 8  # every so many-th image is left out, and says whether the steps have helped


@dataclass
class Rows:
    """Tokens that enter an MLP, and what its branch is to add to the hidden states for them; of images kept apart."""

    entering_ND: list[Tensor] = field(default_factory=list)
    wanted_ND: list[Tensor] = field(default_factory=list)
    image_N: list[Tensor] = field(default_factory=list)

    def add(self, entering_BTD: Tensor, wanted_BTD: Tensor, first_image: int) -> int:
        """Some tokens of a batch's images, the first of which has the number `first_image`; how many images they are.

        Those of all processes are kept on each, which then takes the same steps.
        """
        whole_BTD, whole_wanted_BTD = (world().gather(own_BTD.float()) for own_BTD in (entering_BTD, wanted_BTD))
        images, tokens, width = whole_BTD.shape
        self.entering_ND.append(whole_BTD.reshape(-1, width))
        self.wanted_ND.append(whole_wanted_BTD.reshape(-1, width))
        self.image_N.append(torch.arange(first_image, first_image + images).repeat_interleave(tokens))
        return images

    def split(self, weight: float, count: int) -> "_Sort":
        """Into those of the images that are learned from, and of those that are left out."""
        entering_ND, wanted_ND = torch.cat(self.entering_ND), torch.cat(self.wanted_ND)
        out_N = (torch.cat(self.image_N) % LEFT_OUT == LEFT_OUT - 1).to(entering_ND.device)
        learned, left_out = ((entering_ND[own_N], wanted_ND[own_N]) for own_N in (~out_N, out_N))
        return _Sort(learned, left_out, weight, count)


@dataclass(frozen=True)
class _Sort:
    """Tokens of one sort, each part (entering, wanted).

    Attributes:
        learned, left_out: of the images that are learned from, and of the others.
        weight: of all tokens of the sort in an image. count: tokens of a step.
    """

    learned: tuple[Tensor, Tensor]
    left_out: tuple[Tensor, Tensor]
    weight: float
    count: int


class MlpTokens:
    """What is kept of the tokens that enter one MLP.

    Args:
        read: tokens that the feature reads, by their places in an image; all of them are kept.
        seed: of the others, which are drawn.
    """

    def __init__(self, read: tuple[int, ...], seed: int) -> None:
        self._read = list(read)
        self._generator = torch.Generator().manual_seed(seed)
        self.read, self.others = Rows(), Rows()
        self._num_images = self._num_others = 0

    def add(self, entering_BTD: Tensor, wanted_BTD: Tensor) -> None:
        """Of some images, (B, T, D)."""
        others = [place for place in range(entering_BTD.shape[1]) if place not in self._read]
        self._num_others = len(others)
        drawn = torch.randperm(len(others), generator=self._generator)[:OTHERS].tolist()
        if self._read:
            self.read.add(entering_BTD[:, self._read], wanted_BTD[:, self._read], self._num_images)
        places = [others[place] for place in drawn]
        self._num_images += self.others.add(entering_BTD[:, places], wanted_BTD[:, places], self._num_images)

    def tune(self, slot: MlpSlot, gain_D: Tensor, steps: int) -> bool:
        """Changes the MLP's weights where that brings its branch closer to what is wanted on the images left out.

        Args:
            gain_D: by which the block multiplies the MLP's output.
        """
        sorts = [self.others.split(float(self._num_others), OTHER_ROWS)]
        sorts += [self.read.split(READ_WEIGHT * len(self._read), READ_ROWS)] if self._read else []
        if any(len(entering_ND) == 0 for own in sorts for entering_ND, _ in (own.learned, own.left_out)):
            return False
        twin = slot.twin(torch.float32)
        before = _error_left_out(twin, gain_D, sorts)
        _descend(twin, gain_D, sorts, steps, self._generator)
        if not _error_left_out(twin, gain_D, sorts) < before:
            return False
        # Of one process for all, so that rounding can never part their ways.
        states = world().broadcast([{key: t.cpu() for key, t in own.state_dict().items()} for own in twin.modules])
        for module, state in zip(slot.modules, states, strict=True):
            module.load_state_dict(state)
        return True


def _errors(twin: MlpSlot, gain_D: Tensor, entering_ND: Tensor, wanted_ND: Tensor) -> Tensor:
    """(N,) squared, of what the branch adds to the hidden states."""
    return (gain_D * twin.run(entering_ND) - wanted_ND).square().sum(1)


@torch.no_grad()
def _error_left_out(twin: MlpSlot, gain_D: Tensor, sorts: Sequence[_Sort]) -> float:
    """On the images left out."""
    return float(sum(own.weight * _errors(twin, gain_D, *own.left_out).mean() for own in sorts))


def _descend(twin: MlpSlot, gain_D: Tensor, sorts: Sequence[_Sort], steps: int, generator: torch.Generator) -> None:
    """Adam on the tokens of the images that are learned from."""
    twin.module.requires_grad_(False)
    groups = []
    for module in twin.modules:
        weight = module.get_parameter("weight")
        size = float(weight.detach().square().mean().sqrt())
        groups.append({"params": [p.requires_grad_() for p in module.parameters(recurse=False)], "lr": RATE * size})
    optimizer = torch.optim.Adam(groups, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
    )
    whole = sum(own.weight for own in sorts)
    weights_N = torch.cat([gain_D.new_full((own.count,), own.weight / own.count / whole) for own in sorts])
    with torch.enable_grad():
        for _ in range(steps):
            drawn = []
            for own in sorts:
                rows_N = torch.randint(len(own.learned[0]), (own.count,), generator=generator).to(gain_D.device)
                drawn.append([tokens_ND[rows_N] for tokens_ND in own.learned])
            entering_ND, wanted_ND = map(torch.cat, zip(*drawn, strict=True))
            optimizer.zero_grad()
            (_errors(twin, gain_D, entering_ND, wanted_ND) @ weights_N).backward()
            optimizer.step()
            schedule.step()
