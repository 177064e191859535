"""Scores for a network whose out-projections are refitted: what the feature loses with each neuron, beyond repair.

With ridge (`prune.compensation`) a removed neuron costs only what the kept ones cannot reconstruct of it. To second
order, an error d of an MLP's output moves the unit feature f by d^T G d in square, G = E[sum over tokens of J^T J] with
J = df/d(output), where errors and Jacobians are taken as independent, as in K-FAC (arXiv 1503.05671). With the
covariance C of the activations a, the out-projection W and a set K of kept neurons, that loss is

    tr(G W (C - C_:K C_KK^-1 C_K:) W^T)

Neurons are picked one at a time, each the one that lowers it most, as `_picks.py` says. No labels are used. A token
that the feature reads, such as a class token, counts 64 times in C: errors there move the feature most.

N tokens, D width of the MLP's output, H hidden neurons, L blocks, E width of the feature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amp.errors import UserError
from amp.run.console import progress
from amp.run.world import world
from amp.scoring.criteria._picks import forward_gains
from amp.scoring.criterion import Scoring, checked
from amp.scoring.memory import backward_bytes, forward_bytes
from amp.statistics.hooks import MlpHooks
from amp.statistics.moments import GIGABYTES, MomentCollector, groups, moment_bytes, product, work_bytes
from amp.statistics.saved_sums import HasSums
from amp.towers import Tower
from amp.towers.mlps.slots import Slot


def first_pass_bytes(tower: Tower, batch_size: int, micro_batch: int) -> int:
    """The most that the backward pass takes, with the moments of the first blocks."""
    widths = [slot.hidden_width for slot in tower.slots]
    (first, *_) = groups(widths)
    return sum(moment_bytes(widths[block]) for block in first) + backward_bytes(tower, batch_size, micro_batch)


def other_passes_bytes(tower: Tower, batch_size: int, micro_batch: int) -> int:
    """The most that moments take with what is made of them; or with a forward pass, where there are further blocks."""
    widths = [slot.hidden_width for slot in tower.slots]
    found = [[widths[block] for block in group] for group in groups(widths)]
    passes = [sum(map(moment_bytes, group)) + forward_bytes(tower, batch_size, micro_batch) for group in found[1:]]
    picks = [sum(map(moment_bytes, group)) + most_at_once(group) * work_bytes(max(group)) for group in found]
    return max([*passes, *picks])


READ_WEIGHT = 64  # of a token that the feature reads
ASKS = "score.criterion", "data.num_samples"  # the settings that want moments, and that say of how many images
PASSES = {"activations": first_pass_bytes, "moments": other_passes_bytes}


def score(scoring: Scoring, gigabytes: float = GIGABYTES) -> list[Tensor]:
    """The fall of E|f - f_pruned|^2 as each neuron is picked, comparable between blocks; later picks have less.

    Takes one backward pass over the images, which sees the moments of the first blocks too, as many as memory allows,
    and a forward pass for each further group of blocks.

    Args:
        gigabytes: for the moments of several blocks at once; one block's are always taken.
    Raises:
        UserError: an activation or gradient that is not finite, all scores of a block zero, or too few images.
    """
    slots = scoring.tower.slots
    first, *others = groups([slot.hidden_width for slot in slots], gigabytes)
    found = scoring.finished(_name(first), partial(_first_pass, scoring, first, gigabytes))
    sensitivities, scores = found[: len(slots)], found[len(slots) :]
    for blocks in others:
        scores += scoring.finished(_name(blocks), partial(_pass, scoring, blocks, sensitivities, gigabytes))
    return checked(slots, scores)


def _name(blocks: Sequence[int]) -> str:
    return f"blocks_{blocks[0]}_to_{blocks[-1]}"


def most_at_once(widths: Sequence[int], gigabytes: float = GIGABYTES) -> int:
    """Of a group of blocks of these widths, how many are picked from at once; at least one."""
    left = gigabytes * 1e9 - sum(map(moment_bytes, widths))
    return min(len(widths), max(1, int(left // work_bytes(max(widths)))))


def _first_pass(scoring: Scoring, blocks: range, gigabytes: float) -> list[Tensor]:
    """The sensitivities of all blocks, and the scores of the first ones."""
    slots = scoring.tower.slots[blocks.start : blocks.stop]
    with (
        MomentCollector(slots, *ASKS, scoring.tower.read_tokens, READ_WEIGHT) as moments,
        SensitivityCollector(scoring.tower.slots) as collector,
    ):
        both = _Both([*collector.sums, *moments.sums])
        _sense(scoring, collector, both)
        _settle(scoring, both)
    sensitivities = collector.sensitivities()
    return [*sensitivities, *_picked(scoring, blocks, moments, sensitivities, gigabytes)]


def _pass(scoring: Scoring, blocks: range, sensitivities: Sequence[Tensor], gigabytes: float) -> list[Tensor]:
    """The scores of some blocks."""
    slots = scoring.tower.slots[blocks.start : blocks.stop]
    with torch.no_grad(), MomentCollector(slots, *ASKS, scoring.tower.read_tokens, READ_WEIGHT) as moments:
        for images_BCSS in scoring.steps(moments):
            scoring.tower.feature(images_BCSS)
        _settle(scoring, moments)
    return _picked(scoring, blocks, moments, sensitivities, gigabytes)


@dataclass
class _Both:
    """The sums of a pass that feeds two collectors."""

    sums: list[Tensor]


def _settle(scoring: Scoring, scorer: HasSums) -> None:
    if scoring.saved is not None:
        scoring.saved.settle(scorer)


def _picked(
    scoring: Scoring, blocks: range, moments: MomentCollector, sensitivities: Sequence[Tensor], gigabytes: float
) -> list[Tensor]:
    """The scores of a group of blocks, those of one shape at once, as many as memory allows."""
    slots = scoring.tower.slots
    alike: dict[torch.Size, list[int]] = {}
    for block in blocks:
        alike.setdefault(slots[block].out_projection.weight.shape, []).append(block)
    most = most_at_once([slots[block].hidden_width for block in blocks], gigabytes)
    parts = [own[start : start + most] for own in alike.values() for start in range(0, len(own), most)]
    total = sum(slots[part[0]].hidden_width for part in parts)
    found: dict[int, Tensor] = {}
    with progress(None, f"picks of blocks {blocks[0]} to {blocks[-1]}", "pick", total=total) as bar:
        done = 0
        for part in parts:

            def work(part: Sequence[int] = part) -> Sequence[Tensor]:
                covariance_LHH = _covariances(slots, part, moments, blocks.start)
                weight_LDH = torch.stack([slots[block].out_projection.weight.detach().double() for block in part])
                sensitivity_LDD = torch.stack([sensitivities[block] for block in part])
                return forward_gains(covariance_LHH, weight_LDH, sensitivity_LDD, told=bar.update).unbind()

            scores = work() if scoring.saved is None else scoring.saved.kept(f"scores_{part}", work)
            done += slots[part[0]].hidden_width
            bar.update(done - bar.n)
            found |= dict(zip(part, scores, strict=True))
    return [found[block].to(world().device) for block in blocks]


def _covariances(slots: Sequence[Slot], part: Sequence[int], moments: MomentCollector, first: int) -> Tensor:
    """(L, H, H) fp64: second moments about the mean, or about 0 where nothing can carry a constant."""
    hidden = slots[part[0]].hidden_width
    covariance_LHH = torch.empty(len(part), hidden, hidden, dtype=torch.float64, device=world().device)
    for covariance_HH, block in zip(covariance_LHH, part, strict=True):
        own = moments.of(block - first)
        covariance_HH.copy_(own.covariance_HH)
        if slots[block].out_projection.bias is None:
            covariance_HH.addr_(own.mean_H, own.mean_H)
    return covariance_LHH


def _sense(scoring: Scoring, collector: "SensitivityCollector", scorer: HasSums) -> None:
    """G of every block, (D, D), of the unit feature, summed over an image's tokens.

    E[J^T v v^T J] = J^T J for v of a standard normal, drawn once an image: one backward pass serves all E directions.

    Args:
        scorer: whose sums are those of the pass.
    """
    generator, skipped = torch.Generator().manual_seed(scoring.settings.seed), scoring.num_done
    for images_BCSS in scoring.steps(scorer):
        local = len(images_BCSS)
        micro_batch = scoring.settings.micro_batch or local
        directions_BE: Tensor | None = None
        for start in range(0, local, micro_batch):
            feature_BE = scoring.tower.feature(images_BCSS[start : start + micro_batch])
            unit_BE = F.normalize(feature_BE.float(), dim=-1)
            if directions_BE is None:
                # Those of the whole batch on every process, lest they depend on how many there are.
                for _ in range(1 + skipped):
                    drawn_AE = torch.randn(local * world().size, unit_BE.shape[1], generator=generator)
                skipped = 0
                directions_BE = drawn_AE[world().share(len(drawn_AE))].to(unit_BE.device)
            (unit_BE * directions_BE[start : start + len(unit_BE)]).sum().backward()
        collector.sums[-1] += local


class SensitivityCollector(MlpHooks):
    """Sums g g^T over tokens and images, g the gradient at each MLP's output, while inside `with`.

    Attributes:
        sums: (D, D) fp64 a block, over this process's images so far; then their number, on the CPU, which the caller
            counts.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        super().__init__(slots)
        sizes = [(slot.out_projection.out_features, slot.out_projection.weight.device) for slot in slots]
        self.sums = [torch.zeros(size, size, dtype=torch.float64, device=device) for size, device in sizes]
        self.sums.append(torch.zeros((), dtype=torch.int64))

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
            g_ND = gradients[0].detach().flatten(0, -2)
            self.sums[index] += product(g_ND, g_ND)

        return add

    def sensitivities(self) -> list[Tensor]:
        """(D, D) fp64 a block, averaged over the images of all processes. Raises UserError when one is not finite."""
        num_images = world().sum(self.sums[-1].to(world().device)).item()
        totals = [world().sum(total) for total in self.sums[:-1]]
        for slot, total in zip(self._slots, totals, strict=True):
            if not torch.isfinite(total).all():
                raise UserError(
                    "score.criterion", f"block {slot.name}: a gradient is not finite; try model.precision: fp32"
                )
        return [total / num_images for total in totals]
