"""The record of a tower's size and speed: what is asked for, what is counted, and how the measurements compare."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch

from amp.evaluation.efficiency.cells import Measure, in_precision, measure_precision, tower_bytes
from amp.evaluation.options import EfficiencyOptions
from amp.evaluation.options.speed import Mode, Number
from amp.evaluation.results import open_model
from amp.models.folder import is_model_folder
from amp.models.memory import peak_bytes
from amp.models.sizes import describe_tower
from amp.models.throughput import describe_device, rebuild
from amp.run.console import progress

BATCH = {"cuda": 64, "cpu": 4}
PRECISION: dict[str, Number] = {"cuda": "bf16", "cpu": "fp32"}


def measure_efficiency(
    options: EfficiencyOptions, device: torch.device, begin: Callable[[], None] | None = None
) -> dict[str, Any]:
    """The record: `{image_size, widths, sizes, speedup, device, batch_size, cells, ...}`.

    `pruned` stands beside `dense`, with a `speedup`, where the model is a pruned one. Of `cells`, which --meta leaves
    out, each is of one `tower`, `precision` and `mode`, and holds

    - `images_per_second` and `latency_ms`, the latter of one image: `{median, lower_quartile, upper_quartile}`;
    - `memory_bytes` at the peak of a batch, weights and images included, as the GPU tells it, and
      `planned_memory_bytes` as counted on the meta device for eager blocks;
    - `tflops_per_second`, attention products included; of the pruned also `speedup`, its median by the dense one's, and
      `share_of_theory`, that by the quotient of their FLOPs;
    - or `failed`: why it was not measured.

    Args:
        device: where speed is measured.
        begin: called once the model is found.
    Raises:
        UserError: there is no such model.
    """
    # Weights matter to neither size nor speed, but a name that is wrong should be told, and widths come with them.
    reads = options.pretrained is not None and not is_model_folder(options.pretrained)
    opened = open_model(options, "fp32", "cpu" if reads else "meta")
    base, counts, image_size = opened.base, opened.counts, opened.image_size
    widths = opened.widths
    del opened
    if begin:
        begin()
    dense = rebuild(base, "meta")
    variants = {"dense": None} if counts == dense.counts else {"dense": None, "pruned": counts}
    sizes = {name: describe_tower(rebuild(base, "meta", own) if own else dense) for name, own in variants.items()}
    record: dict[str, Any] = {"model": options.model, "pretrained": options.pretrained, "image_size": image_size}
    record |= {"widths": widths, "sizes": sizes}
    if "pruned" in variants:
        record["speedup"] = {"theoretical": sizes["dense"]["flops"] / sizes["pruned"]["flops"]}
    if options.meta:
        return record
    batch_size = options.batch_size or BATCH[device.type]
    record |= {"device": describe_device(device), "batch_size": batch_size}
    return record | {"cells": _cells(options, base, variants, sizes, batch_size, device)}


def _cells(
    options: EfficiencyOptions,
    base: Mapping[str, Any],
    variants: Mapping[str, list[int] | None],
    sizes: Mapping[str, Mapping[str, int]],
    batch_size: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    asked = options.precisions or (PRECISION[device.type],)
    precisions = [precision for precision in get_args(Number) if precision in asked]
    modes = tuple(mode for mode in get_args(Mode) if mode in options.modes)
    parts = 2 * len(precisions) * len(modes)  # a throughput and a latency of each
    cells: list[dict[str, Any]] = []
    with progress(None, "speed", "round", parts * options.num_rounds) as bar:
        how = Measure(device, batch_size, options.num_rounds, options.seconds / parts, bar.update)
        for precision in precisions:
            planned = {name: plan(base, precision, own, batch_size) for name, own in variants.items()}
            for mode, measured in measure_precision(base, variants, precision, modes, how):
                for name, cell in compare(measured, sizes).items():
                    cell |= {"planned_memory_bytes": planned[name]}
                    cells.append({"tower": name, "precision": precision, "mode": mode, **cell})
    return cells


def plan(base: Mapping[str, Any], precision: Number, widths: list[int] | None, batch_size: int) -> int:
    """Bytes at the peak of a batch through the vision tower, without gradients: its weights, images, activations."""
    tower = in_precision(base, precision, "meta", widths)
    with torch.inference_mode():
        return peak_bytes(tower, batch_size, tower.visual) + tower_bytes(tower)


def compare(
    cells: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, Any]]:
    """The cells of one precision and mode with `tflops_per_second`; the pruned one's with its `speedup` and share."""
    rates = {name: cell["images_per_second"]["median"] for name, cell in cells.items() if "images_per_second" in cell}
    own = {name: dict(cell) for name, cell in cells.items()}
    for name, rate in rates.items():
        own[name]["tflops_per_second"] = rate * sizes[name]["flops_with_attention_products"] / 1e12
    if {"dense", "pruned"} <= rates.keys():
        theory = sizes["dense"]["flops"] / sizes["pruned"]["flops"]
        speedup = rates["pruned"] / rates["dense"]
        own["pruned"] |= {"speedup": speedup, "share_of_theory": speedup / theory}
    return own
