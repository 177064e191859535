"""What a search needs in memory, before anything is loaded or started."""

import math

import torch
from torch import Tensor

from amp.data.listing import list_images
from amp.errors import UserError
from amp.models.memory import (
    ASSUMED_GB,
    describe_memory,
    peak_bytes,
    planned_gigabytes,
    tensor_bytes,
    weight_bytes,
    with_total,
)
from amp.pruning.measure.store import room_for_inputs
from amp.pruning.refit import refits_whole
from amp.pruning.refit._rows import AT_ONCE, most_tokens
from amp.pruning.search import inputs_every, searches
from amp.settings.prune import PruneConfig, SearchSettings
from amp.statistics.moments import gigabytes_for_moments, group_bytes, groups, num_sums, work_bytes
from amp.towers import Tower, build_tower
from amp.towers.mlps.inputs import input_bytes

STREAMS = 4  # hidden states of a refit of the whole: dense ones before, in and after a block, and the pruned network's
LABELS = {"narrowed": "narrowed MLPs", "stored": "block inputs", "stored_elsewhere": "inputs elsewhere"}
GUESSED_IMAGES = 5000  # held-out ones, where the folder is not here yet: COCO's


def plan_search(
    tower: Tower,
    batch_size: int,
    num_batches: int,
    store: str,
    every: int | None,
    num_calibration: int = 0,
    views: int = 0,
    gpu_gb: float = ASSUMED_GB,
    narrows: bool = True,
) -> dict[str, int]:
    """Bytes while widths are searched: on the device `{weights, narrowed, activations, stored, total}`, and elsewhere.

    `narrowed`: the copies that narrow blocks keep while their whole ones wait, at most. `stored`: images and blocks'
    inputs, where `store` is the device; else they count as `stored_elsewhere`. `compensation`: moments, and tokens of
    MLPs with a hidden norm, of the blocks that are prepared together, where there are calibration images; or what a
    refit of the whole takes for the widest MLP, if none of its neurons goes.

    Args:
        views: of a calibration image, where the sliced network is refitted as a whole, which keeps what blocks are
            handed of all of them, four times, after the search.
        gpu_gb: the GPU's memory, of which moments, and a `store` that is `auto`, may take a share.
        narrows: whether widths are tried; else blocks are sliced for good alone.
    """

    @torch.inference_mode()
    def run(images_BCSS: Tensor) -> None:
        tower.feature(images_BCSS)

    size, one = tower.image_size, torch.empty((), dtype=tower.dtype).element_size()
    levels = 0 if every is None else (len(tower.blocks) - 1) // every + (every > 1)
    inputs = 0 if every is None else levels * input_bytes(tower)
    stored = num_batches * batch_size * (3 * size * size * one + inputs)
    modules = [module for slot in tower.slots for module in slot.modules] if narrows else []
    narrowed = tensor_bytes(p for module in modules for p in module.parameters())
    stored = max(stored, STREAMS * num_calibration * input_bytes(tower) * views)
    weights = weight_bytes(tower)
    compensation = refit_bytes(tower, num_calibration, views, gpu_gb)
    room = {"device": math.inf, "auto": room_for_inputs(1e9 * gpu_gb, weights + narrowed + compensation)}
    on_device = int(min(stored, room.get(store, 0.0)))
    activations = peak_bytes(tower, batch_size, run)
    parts = {"weights": weights, "narrowed": narrowed, "activations": activations, "stored": on_device}
    if num_calibration:
        parts["compensation"] = compensation
    return {**with_total(**parts), "stored_elsewhere": stored - on_device}


def calibration_of(settings: SearchSettings) -> tuple[int, int]:
    """Calibration images, and views of each where the sliced network is refitted as a whole; 0 where there are none."""
    if settings.compensation == "none":
        return 0, 0
    return settings.num_calibration_samples, settings.refit_views if refits_whole(settings) else 0


def refit_bytes(tower: Tower, num_calibration: int, views: int, gpu_gb: float | None = None) -> int:
    """The most that a compensation takes on the device, beside the weights and what the search keeps.

    Args:
        num_calibration, views: of `calibration_of`.
        gpu_gb: the GPU's memory; None: of the device at hand.
    """
    if not num_calibration:
        return 0
    if views:
        return _refit_of_the_whole(tower, num_calibration, views)
    return _compensation(tower, num_calibration, gpu_gb)


def _compensation(tower: Tower, num_images: int, gpu_gb: float | None) -> int:
    """Bytes of the largest group of blocks."""
    most = 0
    sums = num_sums(tower.read_tokens)
    for group in groups([slot.hidden_width for slot in tower.slots], gigabytes_for_moments(gpu_gb), sums):
        members = [tower.slots[block] for block in group]
        moments = [slot.hidden_width for slot in members if slot.norm is None]
        tokens = num_images * input_bytes(tower) * (len(members) - len(moments))
        most = max(most, tokens + (group_bytes(moments, sums) if moments else 0))
    return most


def _refit_of_the_whole(tower: Tower, num_images: int, views: int) -> int:
    """Bytes of the tokens of the widest MLP, twice while they are laid together; then of some on their way through it,
    before its activation function and behind, and of its least squares."""
    slot = max(tower.slots, key=lambda slot: slot.hidden_width)
    num_tokens = most_tokens(num_images, len(tower.read_tokens), views)
    tokens = num_tokens * 2 * slot.out_projection.out_features * 4  # entering and asked, fp32
    rows = min(num_tokens, AT_ONCE) * slot.hidden_width * torch.empty((), dtype=tower.dtype).element_size()
    return max(2 * tokens, tokens + 2 * rows + work_bytes(slot.hidden_width))


def describe_plan(config: PruneConfig, asked_gb: float | None) -> str:
    """The plan of a search on one process as lines, and whether it fits a GPU.

    Args:
        asked_gb: memory of the GPU; None: of the one at hand.
    Raises:
        UserError: the model is unknown.
    """
    tower, own, batch_size = build_tower(config.model, "meta"), config.prune, config.data.batch_size
    title = [f"search of {config.model.name} in {config.model.precision} on one process, {batch_size} images per batch"]
    num_images = config.data.num_val_samples
    if num_images is None:
        try:
            num_images = len(list_images(config.data, "val"))
        except UserError:
            num_images = GUESSED_IMAGES
            title.append(f"{config.data.root} does not exist on this machine: {num_images} held-out images are assumed")
    every, num_batches, gpu_gb = inputs_every(own), num_images // batch_size, planned_gigabytes(asked_gb)
    plan = plan_search(tower, batch_size, num_batches, own.store, every, *calibration_of(own), gpu_gb, searches(own))
    advice = "more processes, or model.precision: bf16"
    if plan["stored"] and own.store == "device":
        advice = "prune.store: auto, host or disk, or a larger prune.store_every"
    notes = {LABELS["stored_elsewhere"]: "on disk" if own.store == "disk" else "in the host's memory"}
    labelled = {LABELS.get(key, key): size for key, size in plan.items()}
    return describe_memory(title, labelled, gpu_gb, advice, notes if plan["stored_elsewhere"] else None)
