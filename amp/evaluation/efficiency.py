"""Size and speed of a vision tower, of a pruned one beside its dense one."""

from collections.abc import Mapping
from typing import Any

import torch

from amp.errors import under
from amp.evaluation.options import EfficiencyOptions
from amp.evaluation.results import open_model
from amp.models.sizes import describe_tower
from amp.models.throughput import describe_device, measure_throughput, rebuild
from amp.run.console import say
from amp.run.tables import human, table
from amp.settings.base import Precision


def measure_efficiency(options: EfficiencyOptions, device: torch.device) -> dict[str, Any]:
    """The record: `{image_size, widths, sizes, throughput, speedup, ...}`; without --meta there is a throughput, and
    `pruned` stands beside `dense`, with a speed-up, where the model is a pruned one.

    Args:
        device: where the throughput is measured.
    Raises:
        UserError: there is no such model, or its batch does not fit the device.
    """
    precision: Precision = options.precision or ("bf16" if device.type == "cuda" and not options.meta else "fp32")
    # Weights matter to neither size nor speed, but a name that is wrong should be told, and widths come with them.
    opened = open_model(options, precision, "cpu" if options.pretrained else "meta")
    base, widths, image_size = opened.base, opened.widths, opened.image_size
    del opened
    dense = rebuild(base, "meta")
    variants = {"dense": None} if widths == dense.widths else {"dense": None, "pruned": widths}
    sizes = {name: describe_tower(rebuild(base, "meta", of_variant)) for name, of_variant in variants.items()}
    record: dict[str, Any] = {"model": options.model, "pretrained": options.pretrained, "image_size": image_size}
    record |= {"widths": widths, "sizes": sizes}
    if not options.meta:
        towers = {name: rebuild(base, str(device), of_variant) for name, of_variant in variants.items()}
        with under("--batch_size", instead_of="batch_size"):
            rates = measure_throughput(towers, options.batch_size, options.num_rounds)
        record |= {"device": describe_device(device), "precision": precision}
        record |= {"batch_size": options.batch_size, "num_rounds": options.num_rounds, "throughput": rates}
    if "pruned" in variants:
        record["speedup"] = compare(record)
    return record


def compare(record: Mapping[str, Any]) -> dict[str, float]:
    """`{theoretical}` speed-up, dense FLOPs by pruned ones; where speed was measured also `{measured, ratio}`."""
    sizes, rates = record["sizes"], record.get("throughput")
    theoretical = sizes["dense"]["flops"] / sizes["pruned"]["flops"]
    if rates is None:
        return {"theoretical": theoretical}
    measured = rates["pruned"]["median"] / rates["dense"]["median"]
    return {"theoretical": theoretical, "measured": measured, "ratio": measured / theoretical}


def show(record: Mapping[str, Any]) -> None:
    """The table on the console."""

    def operations(flops: int) -> str:
        return f"{flops / 1e12:.3f}T" if flops >= 1e11 else human(flops)

    sizes, rates = record["sizes"].values(), record.get("throughput", {})
    rows = [
        ["input, pixels", *(f"{record['image_size']}²" for _ in sizes)],
        ["parameters", *(human(size["params"]) for size in sizes)],
        ["MLP share of them", *(f"{size['mlp_params'] / size['params']:.1%}" for size in sizes)],
        ["FLOPs without attention products (the paper's)", *(operations(size["flops"]) for size in sizes)],
        ["FLOPs with attention products", *(operations(size["flops_with_attention_products"]) for size in sizes)],
    ]
    if rates:
        spreads = [f"{rate['lower_quartile']:.4g}–{rate['upper_quartile']:.4g}" for rate in rates.values()]
        rows += [
            ["images/s, median", *(f"{rate['median']:.4g}" for rate in rates.values())],
            ["images/s, quartiles", *spreads],
        ]
    say(table(["vision tower", *record["sizes"]], rows))
    if rates:
        how = f"batches of {record['batch_size']}, {record['num_rounds']} rounds, {record['precision']} weights"
        say(f"throughput: {how}, {record['device']}")
    if speedup := record.get("speedup"):
        words = [f"{speedup['theoretical']:.2f} in theory (FLOPs, the paper's)"]
        if rates:
            words = [f"{speedup['measured']:.2f} measured", *words, f"ratio {speedup['ratio']:.2f}"]
        say(f"speed-up: {', '.join(words)}")
