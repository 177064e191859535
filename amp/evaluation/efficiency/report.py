"""The tables of a tower's size and speed on the console, and what their numbers mean."""

from collections.abc import Mapping
from typing import Any

from amp.run.console import say
from amp.run.tables import human, table

MEANINGS = """\
images/s: median over batches of {batch_size} images; ms/image: median latency of a single image
memory: peak of a batch of {batch_size} images, weights included, {memory}
TFLOP/s: FLOPs with attention products, divided by the time of a batch
speed-up: images/s of pruned divided by dense, at the same precision and mode; of theory: speed-up divided by the ratio
of the FLOPs"""


def show(record: Mapping[str, Any]) -> None:
    """What was counted, and below it what was measured."""
    sizes = record["sizes"].values()
    rows = [
        ["input size (pixels)", *(f"{record['image_size']}²" for _ in sizes)],
        ["parameters", *(human(size["params"]) for size in sizes)],
        ["share of parameters in MLPs", *(f"{size['mlp_params'] / size['params']:.1%}" for size in sizes)],
        ["FLOPs without attention products (the paper's)", *(human(size["flops"]) for size in sizes)],
        ["FLOPs with attention products", *(human(size["flops_with_attention_products"]) for size in sizes)],
    ]
    say(table(["vision tower", *record["sizes"]], rows))
    if "speedup" in record:
        say(
            f"theoretical speed-up: {record['speedup']['theoretical']:.2f} (ratio of the FLOPs without attention "
            "products)"
        )
    if "cells" not in record:
        return
    measured = any("memory_bytes" in cell for cell in record["cells"])
    memory = "measured" if measured else "estimated (a CPU does not report it)"
    headers = ["tower", "precision", "mode", "images/s", "quartiles", "ms/image", "memory (GB)", "TFLOP/s"]
    headers += ["speed-up", "of theory"] if "speedup" in record else []
    say(f"\n{record['device']}")
    say(table(headers, [_row(cell)[: len(headers)] for cell in record["cells"]]))
    lines = MEANINGS.format(batch_size=record["batch_size"], memory=memory).splitlines()
    say("\n".join(lines if "speedup" in record else lines[:-2]))
    for cell in record["cells"]:
        if "failed" in cell:
            say(f"not measured: {cell['tower']}, {cell['precision']}, {cell['mode']}: {cell['failed']}")


def _row(cell: Mapping[str, Any]) -> list[str]:
    rate, latency = cell.get("images_per_second"), cell.get("latency_ms")
    memory = cell.get("memory_bytes", cell["planned_memory_bytes"])
    return [
        cell["tower"],
        cell["precision"],
        cell["mode"],
        f"{rate['median']:.4g}" if rate else "-",
        f"{rate['lower_quartile']:.4g}–{rate['upper_quartile']:.4g}" if rate else "-",
        f"{latency['median']:.3g}" if latency else "-",
        f"{memory / 1e9:.3g}" if rate else "-",
        f"{cell['tflops_per_second']:.3g}" if rate else "-",
        f"{cell['speedup']:.2f}" if "speedup" in cell else "",
        f"{cell['share_of_theory']:.2f}" if "share_of_theory" in cell else "",
    ]
