"""First-order Taylor scores of every hidden neuron of every block, in one backward pass a batch.

B images, T tokens, H hidden width.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from amp.checkpoint import write_tensors
from amp.criteria import information_entropy
from amp.distributed import World
from amp.errors import UserError
from amp.mlp import MlpSlot
from amp.runs import atomic, first_difference
from amp.towers import Tower


class TaylorScorer:
    """Accumulates |sum over tokens of a * dE/da| per neuron, while inside `with` (AMP, arXiv 2603.08100, section 2).

    a is the input of an MLP's out-projection, (B, T, H). Absolute mode takes the absolute value after the token sum,
    per image, before the mean over images; signed mode takes none. No parameter needs a gradient: the graph starts at
    the first block's activation.
    """

    def __init__(self, slots: Sequence[MlpSlot], absolute: bool = True) -> None:
        self._slots = slots
        self._absolute = absolute
        device = slots[0].out_projection.weight.device
        self._sums = [torch.zeros(slot.hidden_width, device=device) for slot in slots]
        self._forwards = [0] * len(slots)
        self._backwards = [0] * len(slots)
        self._handles: list[RemovableHandle] = []
        self._paused = False
        self.num_images = 0

    def __enter__(self) -> "TaylorScorer":
        for index, slot in enumerate(self._slots):
            self._handles.append(slot.out_projection.register_forward_pre_hook(self._watch(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, what runs is not scored."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _watch(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
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
        self._sums[index] += (products_BH.abs() if self._absolute else products_BH).sum(dim=0)

    def step(self, loss: Tensor, num_images: int) -> None:
        """Backward of one batch's scalar loss; `num_images` of it went through this process's forward.

        Raises:
            RuntimeError: an out-projection did not run exactly once, or no gradient reached it exactly once.
        """
        if not torch.isfinite(loss):
            raise RuntimeError(f"the criterion is {loss.item()} on this batch; scores would be meaningless")
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
        self.num_images += num_images

    def scores(self, world: World) -> list[Tensor]:
        """One (H,) fp32 tensor a block: the mean over the images of all processes.

        Raises:
            RuntimeError: a score is not finite, or all scores of a block are zero.
        """
        total = world.sum(torch.tensor(self.num_images, device=self._sums[0].device)).item()
        scores = [world.sum(s) / total for s in self._sums]
        for slot, score_H in zip(self._slots, scores, strict=True):
            if not torch.isfinite(score_H).all():
                raise RuntimeError(f"block {slot.name}: a score is not finite; try model.precision: fp32")
            if not score_H.any():
                raise RuntimeError(f"block {slot.name}: all scores are zero; are all images the same?")
        return scores


def score_entropy(
    tower: Tower,
    batches: Iterable[Tensor],
    inverse_temperature: float,
    absolute: bool,
    world: World,
    micro_batch: int | None = None,
) -> list[Tensor]:
    """Taylor scores of the entropy of each global batch; one (H,) fp32 tensor a block, equal on every process.

    Args:
        batches: local shares (B / processes, C, S, S) of the global batches.
        micro_batch: images in one backward pass. The entropy's gradient at the features of the whole batch, which a
            forward pass without a graph gives, is handed to one part of the batch after another.

    The gathered rows' entropy is the global one on every process, and the mean of scores over batches of one size is
    the mean over images.
    """
    with TaylorScorer(tower.slots, absolute) as scorer:
        for images_BCHW in batches:
            images_BCHW = images_BCHW.to(world.device, tower.dtype, non_blocking=True)
            if micro_batch is None or micro_batch >= len(images_BCHW):
                feature_BD = world.gather(tower.feature(images_BCHW))
                scorer.step(information_entropy(feature_BD, inverse_temperature), len(images_BCHW))
                continue
            parts = images_BCHW.split(micro_batch)
            with scorer.paused(), torch.no_grad():
                feature_BD = torch.cat([tower.feature(part) for part in parts])
            loss = information_entropy(world.gather(feature_BD.requires_grad_()), inverse_temperature)
            (gradient_BD,) = torch.autograd.grad(loss, feature_BD)
            for part, gradient in zip(parts, gradient_BD.split(micro_batch), strict=True):
                scorer.step((tower.feature(part) * gradient).sum(), len(part))
        return scorer.scores(world)


def score_random(slots: Sequence[MlpSlot], seed: int) -> list[Tensor]:
    """Uniform random scores, a baseline: one (H,) fp32 tensor a block."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(slot.hidden_width, generator=generator) for slot in slots]


def save_scores(scores: Sequence[Tensor], header: Mapping[str, Any], path: Path) -> None:
    """`score.{block}` fp32 (H,) for every block, and a JSON header of settings."""
    with atomic(path) as partial:
        tensors = {f"score.{block}": score_H for block, score_H in enumerate(scores)}
        write_tensors(partial, tensors, {"amp": json.dumps(header)})


def load_scores(path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    """Scores by block, and their header. Raises UserError when the file holds none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(json.loads((file.metadata() or {})["amp"]))
            scores = [file.get_tensor(f"score.{block}") for block in range(len(file.keys()))]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run main_score.py with the same --config_file first") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a scores file of main_score.py ({error})") from None
    return scores, header


def check_scores(scored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError naming what differs when scores were made for another model, data or criterion.

    Args:
        scored, wanted: headers as `amp.runs.describe` makes them; only what decides the scores is compared.
    """
    keys = ("model", "data", "score")
    trimmed = {**wanted, "settings": {key: wanted["settings"][key] for key in keys}}
    difference = first_difference(scored, trimmed)
    if difference:
        key, old, new = difference
        raise UserError(
            f"scores.safetensors: made with {key} = {old!r}, asked for {new!r}; "
            "run main_score.py with these settings, into another output.dir"
        )
