"""`amp.distill`: a pruned model in memory learns from the dense model that it was pruned from.

B images, C channels, S side in pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from amp.api.images import arguments_named
from amp.api.objects import device_of, frozen, known_of, unwrapped
from amp.api.pruned import computing, object_of
from amp.data.given import Stream, count_images, is_path
from amp.data.layouts import Source
from amp.data.listing import Listing
from amp.distillation import Loop, MemoryKeeper, Trainer, share_head, training_images
from amp.errors import UserError
from amp.run.figures import BLUE, panels
from amp.run.world import alone
from amp.settings.data import batch_within
from amp.settings.distill import RECOMMENDED, DistillConfig
from amp.settings.model import TEACHER_IN_MEMORY
from amp.settings.reading.keywords import from_keywords, merged
from amp.settings.reading.yaml_files import validate
from amp.towers import Tower, after_last_block, on_meta, with_heads, wrap_tower
from amp.towers.given import dtype_of

SOURCE = "amp.distill"
WARM_UP_SHARE = 10  # of the steps, one in so many


@dataclass(frozen=True)
class Distilled:
    """The result of a distillation.

    Attributes:
        model: the student, trained in place.
        log: one record per step: `{step, loss, loss_cls, loss_patch, lr, weight_decay}`.
    """

    model: nn.Module = field(repr=False)
    log: Sequence[Mapping[str, float]] = field(repr=False)

    def __str__(self) -> str:
        first, last = self.log[0]["loss"], self.log[-1]["loss"]
        return f"{len(self.log)} steps; loss {first:.4g} -> {last:.4g}"

    __repr__ = __str__

    def plot(self) -> Figure:
        """Draws the loss of every step."""
        figure, (axes,) = panels(1, 5.6, 4)
        axes.plot([record["step"] for record in self.log], [record["loss"] for record in self.log], color=BLUE)
        axes.set(xlabel="step", ylabel="loss (mean squared error of tokens)", yscale="log", title="Distillation")
        return figure


def distill(student: Any, teacher: nn.Module, images: Any, /, steps: int = 500, **settings: Any) -> Distilled:
    """Trains a pruned model in place to reproduce the tokens of its dense model (AMP, arXiv 2603.08100, section 4).

    Runs the training loop of `distill.py` in memory, without labels. The teacher does not change. The student takes
    over the final norm and the head of the teacher; they are not trained.

    Args:
        student: the result of `amp.prune`, its model, or a model that `amp.load_pruned` returned; in fp32 or bf16.
        teacher: the dense model, on the same device as the student; its precision may differ.
        images: as for `amp.prune`. A DataLoader is iterated again for every epoch, so its augmentation is drawn anew.
        steps: the number of optimizer steps.
        settings: the settings of distill.py in the groups `data` and `optim`, as a group (`optim={"base_lr": 1e-4}`) or
            by the key alone (`base_lr=1e-4`, `batch_size=32`); docs/settings.md lists them.

    Raises:
        UserError: the two models do not belong together, or a setting is not allowed.
        StoppedError: you pressed Ctrl-C, or a loss is not finite.
    """
    model, dense = unwrapped(object_of(student)), unwrapped(object_of(teacher))
    tower = known_of(model, "student").tower
    device = device_of(model)
    if device_of(dense) != device:
        raise UserError("teacher", f"is on {device_of(dense)}, but the student is on {device}; move one of them")
    if model is dense:
        raise UserError("teacher", "is the student itself; give the dense model")
    with ExitStack() as within:
        within.enter_context(arguments_named())
        config, listing = _config(tower, images, steps, settings)
        within.enter_context(computing())
        within.enter_context(alone(device))
        within.enter_context(frozen(dense))
        within.enter_context(frozen(model))
        dense_tower = wrap_tower(dense)
        _check_pair(dense_tower, tower)
        share_head(dense_tower, tower, after_last_block(on_meta(dense_tower)))
        own = _images(images, listing, dense_tower, config, steps)
        trainer = Trainer(dense_tower, tower, config.optim, config.data.batch_size, len(own))
        within.callback(trainer.close)
        keeper = MemoryKeeper()
        Loop(trainer, own, keeper, config.output).train()
    return Distilled(model, keeper.records)


def _config(tower: Tower, images: Any, steps: int, keywords: Mapping[str, Any]) -> tuple[DistillConfig, Listing | None]:
    """The settings, with batches that the images fill; and what is listed of a folder of images."""
    raw: dict[str, Any] = from_keywords(DistillConfig, keywords, SOURCE, ("data", "optim"))
    if long := raw.get("optim", {}).keys() & {"epochs", "warmup_epochs"}:
        raise UserError(f"{SOURCE}: {min(long)}", "not used here; steps and warmup_steps set the length")
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"{SOURCE}: steps", f"{steps!r} is not allowed; give a whole number, 1 or more")
    dtype = dtype_of(tower.visual)
    precision = {torch.float32: "bf16" if tower.device.type == "cuda" else "fp32", torch.bfloat16: "pure_bf16"}
    if dtype not in precision:
        raise UserError(
            "student", f"has the dtype {dtype}; train it in fp32 (model.float()) or bf16 (model.bfloat16())"
        )
    at_hand: dict[str, Any] = {
        "teacher": {"name": TEACHER_IN_MEMORY},
        "student": {"pretrained": "in-memory"},
        "data": {"name": "imagefolder", "root": str(images) if is_path(images) else "images-in-memory"},
        "optim": {"warmup_steps": steps // WARM_UP_SHARE, "precision": precision[dtype]},
        "output": {"dir": ".", "eval_every": 0},
    }
    whole = merged(merged(at_hand, RECOMMENDED), raw)
    config = validate(DistillConfig, whole, SOURCE)
    listing = Listing(config.data) if is_path(images) else None
    if "batch_size" not in raw.get("data", {}):
        count = count_images(images) if listing is None else len(listing.images("train"))
        parts = config.optim.accumulate
        fitted = batch_within(config.data.batch_size, count) // parts * parts
        config = validate(DistillConfig, merged(whole, {"data": {"batch_size": max(parts, fitted)}}), SOURCE)
    if config.optim.activation_checkpointing or config.optim.parallel != "ddp":
        advice = "here call model.set_grad_checkpointing() or model.gradient_checkpointing_enable()"
        raise UserError(f"{SOURCE}: optim", f"activation_checkpointing and fsdp work only in distill.py; {advice}")
    return config, listing


def _check_pair(dense: Tower, pruned: Tower) -> None:
    """Raises UserError unless one is the other with narrower MLPs, or fewer heads."""
    dense = with_heads(dense) if pruned.heads else dense
    theirs, own = (_shapes(tower) for tower in (dense, pruned))
    for name in sorted(theirs.keys() | own.keys()):
        if theirs.get(name) != own.get(name):
            told = [str(shapes.get(name, "missing")) for shapes in (theirs, own)]
            raise UserError(
                "teacher", f"does not match the student: its {name} is {told[0]}, the student's is {told[1]}"
            )
    for name, narrow, wide in zip(dense.blocks, pruned.widths, dense.widths, strict=True):
        if narrow > wide:
            raise UserError("teacher", f"{name}: the student has {narrow} hidden neurons, the teacher only {wide}")


def _shapes(tower: Tower) -> dict[str, list[int]]:
    """Of all but what a slice changes, whose shapes say nothing."""
    sliced = {id(parameter) for slot in tower.units for parameter in slot.shared}
    named = tower.visual.state_dict(keep_vars=True).items()
    return {name: [] if id(tensor) in sliced else [*tensor.shape] for name, tensor in named}


class _Again:
    """The batches of a folder, epoch after epoch, until there were enough steps."""

    def __init__(self, batches: Any, steps: int) -> None:
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return self._steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """(B, C, S, S), from batch `start` on."""
        first, within = divmod(start, len(self._batches))
        number = start
        while number < self._steps:
            for batch_BCSS in self._batches.epoch(first, within):
                if number < self._steps:
                    yield batch_BCSS
                number += 1
            first, within = first + 1, 0

    def files(self, epoch: int, batch: int) -> list[Source]:
        """Of a batch."""
        found: list[Source] = self._batches.files(*divmod(batch, len(self._batches)))
        return found


def _images(images: Any, listing: Listing | None, teacher: Tower, config: DistillConfig, steps: int) -> Any:
    if listing is not None:
        return _Again(training_images(config, teacher, listing), steps)
    seed = config.data.seed if config.data.shuffle else None
    return Stream(images, teacher.transform, teacher.image_size, config.data.batch_size, steps, seed)
