"""What scoring and search need in memory, found by running them on meta tensors, before anything is loaded or started.

B images in one batch of one process.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amp.activations import TaylorScorer
from amp.config import PruneConfig
from amp.data import list_images
from amp.errors import UserError
from amp.moments import group_bytes, groups
from amp.replay import input_bytes
from amp.towers import Tower, build_tower

GB = 1e9
GUESSED_IMAGES = 5000  # held-out ones, where the folder is not here yet: COCO's


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that live at once while operations run inside `with`; those made before do not count.

    Attributes:
        peak: the most so far.
        num_tokens: T; (T, T) matrices do not count, since attention on a GPU keeps none.
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.peak = self._now = 0
        self._alive: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.shape[-2:] != (self.num_tokens, self.num_tokens):
                storage = leaf.untyped_storage()
                if id(storage) not in before and id(storage) not in self._alive:
                    self._alive[id(storage)] = storage
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return output

    def _freed(self, size: int) -> None:
        self._now -= size


def plan_scoring(tower: Tower, batch_size: int, criterion: str = "entropy") -> dict[str, int]:
    """Bytes on the device while neurons are scored: `{weights, activations, total}`.

    The criterion's own (B, B) matrices are left out. `moments`, of reconstruction: those of the blocks scored
    together and a forward pass, after the backward passes.

    Args:
        tower: on the meta device.
        batch_size: B.
    """

    def run(images_BCSS: Tensor) -> None:
        with TaylorScorer(tower.slots):
            tower.feature(images_BCSS).sum().backward()

    plan = {"weights": _weights(tower), "activations": _peak(tower, batch_size, run)}
    most = plan["activations"]
    if criterion == "reconstruction":
        widths = [slot.hidden_width for slot in tower.slots]
        moments = max(group_bytes([widths[block] for block in group]) for group in groups(widths))
        plan["moments"] = moments + _peak(tower, batch_size, torch.inference_mode()(tower.feature))
        most = max(most, plan["moments"])
    return {**plan, "total": plan["weights"] + most}


def plan_search(
    tower: Tower, batch_size: int, num_batches: int, store: str, every: int | None, num_calibration: int = 0
) -> dict[str, int]:
    """Bytes while widths are searched: on the device `{weights, narrowed, activations, stored, total}`, and elsewhere.

    `narrowed`: the copies that narrow blocks keep while their whole ones wait, at most. `stored`: images and blocks'
    inputs, where `store` is the device; else they count as `stored_elsewhere`. `compensation`: moments, and tokens of
    MLPs with a hidden norm, of the blocks that are prepared together, where there are calibration images.
    """

    @torch.inference_mode()
    def run(images_BCSS: Tensor) -> None:
        tower.feature(images_BCSS)

    size, one = tower.image_size, torch.empty((), dtype=tower.dtype).element_size()
    levels = 0 if every is None else (len(tower.blocks) - 1) // every + (every > 1)
    inputs = 0 if every is None else levels * input_bytes(tower)
    stored = num_batches * batch_size * (3 * size * size * one + inputs)
    narrowed = sum(p.numel() * p.element_size() for slot in tower.slots for m in slot.modules for p in m.parameters())
    on_device = stored if store == "device" else 0
    activations = _peak(tower, batch_size, run)
    plan = _with_total(weights=_weights(tower), narrowed=narrowed, activations=activations, stored=on_device)
    if num_calibration:
        compensation = _compensation(tower, num_calibration)
        plan = {**plan, "compensation": compensation, "total": plan["total"] + compensation}
    return {**plan, "stored_elsewhere": stored - on_device}


def _compensation(tower: Tower, num_images: int) -> int:
    """Bytes of the largest group of blocks."""
    most = 0
    for group in groups([slot.hidden_width for slot in tower.slots]):
        members = [tower.slots[block] for block in group]
        moments = [slot.hidden_width for slot in members if slot.norm is None]
        tokens = num_images * input_bytes(tower) * (len(members) - len(moments))
        most = max(most, tokens + (group_bytes(moments) if moments else 0))
    return most


def _with_total(**parts: int) -> dict[str, int]:
    return {**parts, "total": sum(parts.values())}


def _weights(tower: Tower) -> int:
    return sum(p.numel() * p.element_size() for p in [*tower.model.parameters(), *tower.model.buffers()])


def _peak(tower: Tower, batch_size: int, run: Callable[[Tensor], object]) -> int:
    images_BCSS = torch.empty(batch_size, 3, tower.image_size, tower.image_size, dtype=tower.dtype, device="meta")
    num_tokens = input_bytes(tower) // max(1, tower.slots[0].out_projection.out_features) // images_BCSS.element_size()
    with PeakMemory(num_tokens) as memory:
        run(images_BCSS)
    return memory.peak + images_BCSS.nbytes


def describe_plan(config: PruneConfig, verb: str, gpu_gb: float) -> str:
    """The plan of 'scoring' or 'search' on one process as lines, and whether it fits a GPU.

    Raises:
        UserError: the model is unknown.
    """
    tower, local = build_tower(config.model, "meta"), config.data.batch_size
    if verb == "scoring":
        local = min(local, config.score.micro_batch or local)
    lines = [f"{verb} of {config.model.name} in {config.model.precision} on one process, {local} images at a time"]
    if verb == "scoring":
        plan = plan_scoring(tower, local, config.score.criterion)
    else:
        num_images = config.data.num_val_samples
        if num_images is None:
            try:
                num_images = len(list_images(config.data, "val"))
            except UserError:
                num_images = GUESSED_IMAGES
                lines.append(f"{config.data.root} is not here: {num_images} held-out images are assumed")
        own = config.prune
        calibration = 0 if own.compensation == "none" else own.num_calibration_samples
        plan = plan_search(tower, local, num_images // config.data.batch_size, own.store, own.inputs_every, calibration)
    lines += [f"  {name.replace('_', ' '):<17}{size / GB:9.2f} GB" for name, size in plan.items()]
    if plan.get("stored_elsewhere"):
        lines[-1] += f" ({config.prune.store})"
    fits = "fits" if plan["total"] <= gpu_gb * GB else "does not fit"
    advice = (
        ""
        if fits == "fits"
        else "; " + ("score.micro_batch" if verb == "scoring" else "more processes") + ", or model.precision: bf16"
    )
    if fits != "fits" and plan.get("stored"):
        advice = "; prune.store: host or disk, or a larger prune.store_every"
    return "\n".join([*lines, f"{fits} a GPU of {gpu_gb:g} GB{advice}"])
