"""How much the feature loses without each neuron, after the out-projections are refitted.

With ridge (`prune.compensation`) a removed neuron costs only what the kept ones cannot reconstruct of it. To second
order, an error d of an MLP's output moves the unit feature f by d^T G d in square, G = E[sum over tokens of J^T J] with
J = df/d(output), where errors and Jacobians are taken as independent, as in K-FAC (arXiv 1503.05671). With the
covariance C of the activations a, the out-projection W and a set K of kept neurons, that loss is

    tr(G W (C - C_:K C_KK^-1 C_K:) W^T)

Neurons are picked one at a time, each the one that lowers it most, as `_picks.py` says. No labels are used. In C a
token that the feature reads, such as a class token, counts as many times as errors there move the feature more than
those of another token (`_sensitivity.py`), 64 times at most.

N tokens, D width of the MLP's output, H hidden neurons, L blocks, E width of the feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.run.console import progress
from amp.run.world import world
from amp.scoring.criteria._picks import forward_gains
from amp.scoring.criteria._sensitivity import SensitivityCollector
from amp.scoring.criterion import Load, Scoring, checked
from amp.scoring.memory import backward_bytes, forward_bytes
from amp.statistics.kept_moments import for_refit, unit_names
from amp.statistics.moments import (
    MomentCollector,
    gigabytes_for_moments,
    groups,
    moment_bytes,
    num_sums,
    work_bytes,
)
from amp.statistics.saved_sums import HasSums
from amp.towers import Tower
from amp.towers.mlps.slots import Slot


def first_pass_bytes(load: Load) -> int:
    """The most that the backward pass takes, with the moments of the first blocks."""
    tower = load.tower
    first, *_ = _groups(tower, gigabytes_for_moments(load.gpu_gb))
    moments = sum(moment_bytes(tower.widths[block], num_sums(tower.read_tokens)) for block in first)
    return moments + backward_bytes(load)


def other_passes_bytes(load: Load) -> int:
    """The most that moments take with what is made of them; or with a forward pass, where there are further blocks."""
    tower, gigabytes = load.tower, gigabytes_for_moments(load.gpu_gb)
    sums = num_sums(tower.read_tokens)
    found = [[tower.widths[block] for block in group] for group in _groups(tower, gigabytes)]
    moments = [sum(moment_bytes(width, sums) for width in group) for group in found]
    passes = [own + forward_bytes(load) for own in moments[1:]]
    picks = [
        own + most_at_once(group, sums, gigabytes) * work_bytes(max(group))
        for own, group in zip(moments, found, strict=True)
    ]
    return max([*passes, *picks])


def _groups(tower: Tower, gigabytes: float) -> list[range]:
    return groups(tower.widths, gigabytes, num_sums(tower.read_tokens))


ASKS = "score.criterion", "data.num_samples"  # the settings that want moments, and that say of how many images
# A backward pass takes one of so many images, but half as many images as the tower is wide: with a fourth of 2,048, and
# with an eighth, networks at half and less of a ViT's size are as good; with a third of its width, slightly worse.
SENSED_SHARE, SENSED_LEAST = 4, 0.5
PASSES = {"activations": first_pass_bytes, "moments": other_passes_bytes}


def score(scoring: Scoring, gigabytes: float | None = None) -> list[Tensor]:
    """The fall of E|f - f_pruned|^2 as each neuron is picked, comparable between blocks; later picks have less.

    Takes one backward pass over the images, which sees the moments of the first blocks too, as many as memory allows,
    and a forward pass for each further group of blocks.

    Args:
        gigabytes: for the moments of several blocks at once; one block's are always taken. None: as the device has.
    Raises:
        UserError: an activation or gradient that is not finite, all scores of a block zero, or too few images.
    """
    slots, gigabytes = scoring.tower.slots, gigabytes_for_moments() if gigabytes is None else gigabytes
    first, *others = _groups(scoring.tower, gigabytes)
    work = partial(_first_pass, scoring, first, gigabytes, bool(others))
    found = scoring.finished(f"first_{_name(first)}", work)
    scores = found[: len(first)]
    if others:
        weights_L, *sensitivities = found[len(first) :]
        sensed = _Sensed(sensitivities, weights_L.tolist())
        for blocks in others:
            scores += scoring.finished(_name(blocks), partial(_pass, scoring, blocks, sensed, gigabytes))
    return checked(slots, scores)


@dataclass(frozen=True)
class _Sensed:
    """Of each block: its sensitivity, and the weight of a token that the feature reads."""

    sensitivities: Sequence[Tensor]
    weights: Sequence[float]


def _name(blocks: Sequence[int]) -> str:
    return f"blocks_{blocks[0]}_to_{blocks[-1]}"


def most_at_once(widths: Sequence[int], sums: int, gigabytes: float, idle: int = 0) -> int:
    """Of a group of blocks of these widths, how many are picked from at once; at least one.

    Args:
        idle: bytes beside the moments that may be taken in any case.
    """
    left = max(idle, gigabytes * 1e9 - sum(moment_bytes(width, sums) for width in widths))
    return min(len(widths), max(1, int(left // work_bytes(max(widths)))))


def _first_pass(scoring: Scoring, blocks: range, gigabytes: float, others: bool) -> list[Tensor]:
    """The scores of the first blocks; and where there are others, the weights and the sensitivities of all blocks."""
    tower = scoring.tower
    with (
        MomentCollector(tower.slots[blocks.start : blocks.stop], *ASKS, tower.read_tokens) as moments,
        SensitivityCollector(tower.slots, tower.read_tokens) as collector,
    ):
        both = Both([*collector.sums, *moments.sums])
        sense(scoring, collector, both, backward_every(tower, scoring.num_images))
        settle(scoring, both)
    sensed = _Sensed(*collector.sensitivities())
    scores = _picked(scoring, blocks, moments, sensed, gigabytes)
    return [*scores, *([torch.tensor(sensed.weights).double(), *sensed.sensitivities] if others else [])]


def _pass(scoring: Scoring, blocks: range, sensed: _Sensed, gigabytes: float) -> list[Tensor]:
    """The scores of some blocks."""
    tower = scoring.tower
    slots = tower.slots[blocks.start : blocks.stop]
    with torch.no_grad(), MomentCollector(slots, *ASKS, tower.read_tokens) as moments:
        for images_BCSS in scoring.steps(moments):
            for part_BCSS in scoring.parts(images_BCSS):
                tower.feature(part_BCSS)
        settle(scoring, moments)
    return _picked(scoring, blocks, moments, sensed, gigabytes)


@dataclass
class Both:
    """The sums of a pass that feeds two collectors."""

    sums: list[Tensor]


def settle(scoring: Scoring, scorer: HasSums) -> None:
    """After a pass, whose sums it takes long to make something of: they are kept, where any are."""
    if scoring.saved is not None:
        scoring.saved.settle(scorer)


def _picked(
    scoring: Scoring, blocks: range, moments: MomentCollector, sensed: _Sensed, gigabytes: float
) -> list[Tensor]:
    """The scores of a group of blocks, those of one shape at once, as many as memory allows."""
    slots = scoring.tower.slots
    names = unit_names(len(slots), heads=False)
    alike: dict[torch.Size, list[int]] = {}
    for block in blocks:
        alike.setdefault(slots[block].out_projection.weight.shape, []).append(block)
    widths, sums = [slots[block].hidden_width for block in blocks], num_sums(scoring.tower.read_tokens)
    most = most_at_once(widths, sums, gigabytes, _idle_bytes(world().device))
    parts = [own[start : start + most] for own in alike.values() for start in range(0, len(own), most)]
    total = sum(slots[part[0]].hidden_width for part in parts)
    found: dict[int, Tensor] = {}
    with progress(None, f"ranking blocks {blocks[0]} to {blocks[-1]}", "neuron", total=total) as bar:
        done = 0
        for part in parts:

            def work(part: Sequence[int] = part) -> Sequence[Tensor]:
                if scoring.moments is not None:
                    for block in part:
                        scoring.moments.keep(names[block], for_refit(moments, block - blocks.start))
                covariance_LHH = covariances(slots, part, moments, blocks.start, sensed.weights)
                weight_LDH = torch.stack([slots[block].out_projection.weight.detach().double() for block in part])
                sensitivity_LDD = torch.stack([sensed.sensitivities[block] for block in part])
                return forward_gains(covariance_LHH, weight_LDH, sensitivity_LDD, told=bar.update).unbind()

            scores = work() if scoring.saved is None else scoring.saved.kept(f"scores_{part}", work)
            done += slots[part[0]].hidden_width
            bar.update(done - bar.n)
            found |= dict(zip(part, scores, strict=True))
    return [found[block].to(world().device) for block in blocks]


def _idle_bytes(device: torch.device) -> int:
    """What the pass over the images has taken of a GPU and needs no more."""
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)


def covariances(
    slots: Sequence[Slot], part: Sequence[int], moments: MomentCollector, first: int, weights: Sequence[float]
) -> Tensor:
    """(L, H, H) fp64: second moments about the mean, or about 0 where nothing can carry a constant."""
    hidden = slots[part[0]].hidden_width
    covariance_LHH = torch.empty(len(part), hidden, hidden, dtype=torch.float64, device=world().device)
    for covariance_HH, block in zip(covariance_LHH, part, strict=True):
        own = moments.of(block - first, weights[block])
        covariance_HH.copy_(own.covariance_HH)
        if slots[block].out_projection.bias is None:
            covariance_HH.addr_(own.mean_H, own.mean_H)
    return covariance_LHH


def sense(scoring: Scoring, collector: SensitivityCollector, scorer: HasSums, every: int = 1) -> None:
    """G of every block, (D, D), of the unit feature, summed over an image's tokens.

    E[J^T v v^T J] = J^T J for v of a standard normal, drawn once an image: one backward pass serves all E directions.

    Args:
        scorer: whose sums are those of the pass.
        every: of how many batches one is gone through backwards; the others just forwards.
    """
    generator, skipped = torch.Generator().manual_seed(scoring.settings.seed), -(-scoring.num_done // every)
    for number, images_BCSS in enumerate(scoring.steps(scorer), scoring.num_done):
        senses, local = number % every == 0, len(images_BCSS)
        directions: list[Tensor] = []
        for part, part_BCSS in enumerate(scoring.parts(images_BCSS)):
            with torch.set_grad_enabled(senses):
                unit_BE = F.normalize(scoring.tower.feature(part_BCSS).float(), dim=-1)
            if not senses:
                continue
            if not directions:
                # Those of the whole batch on every process, lest they depend on how many there are.
                for _ in range(1 + skipped):
                    drawn_AE = torch.randn(local * world().size, unit_BE.shape[1], generator=generator)
                skipped = 0
                directions = [*scoring.parts(drawn_AE[world().share(len(drawn_AE))].to(unit_BE.device))]
            (unit_BE * directions[part]).sum().backward()
        collector.sums[-1] += local * senses


def backward_every(tower: Tower, num_images: int) -> int:
    """Of how many batches one is gone through backwards: the sensitivities need fewer images than the covariances.

    Args:
        num_images: of all batches.
    """
    width = max(slot.out_projection.out_features for slot in tower.slots)
    return max(1, min(SENSED_SHARE, int(num_images / (SENSED_LEAST * width))))
