"""Parameters, FLOPs and throughput of a vision tower; of a pruned one beside its dense one."""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amp.evaluate.results import add_model_options, check_options, check_writable, open_model
from amp.run.console import reproduce, run_script, say
from amp.run.files import write_json
from amp.settings.base import Precision

PACKAGES = ("torch", "open_clip_torch", "timm")


def parse_args() -> argparse.Namespace:
    """The command line; mistakes in it exit with 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_options(parser)
    add = parser.add_argument
    add("--meta", action="store_true", help="count on meta tensors, measure no throughput (default: %(default)s)")
    add("--batch_size", type=int, default=64, help="images in a batch of the throughput (default: %(default)s)")
    add("--num_rounds", type=int, default=20, help="batches measured, after 3 to warm up (default: %(default)s)")
    add("--precision", choices=("fp32", "bf16"), help="of the weights (default: bf16 on CUDA, fp32 on CPU)")
    add("--json", metavar="FILE", help="write the numbers here (default: nowhere)")
    args = parser.parse_args()
    check_options(parser, args, {"batch_size": 1, "num_rounds": 2})
    if args.json:
        check_writable("--json", args.json)
    return args


def measure(args: argparse.Namespace, device: Any) -> dict[str, Any]:
    """The record: `{image_size, sizes, throughput, speedup, ...}`; `pruned` stands beside `dense` where it exists.

    Args:
        device: torch's, where the throughput is measured.
    """
    from amp.models.sizes import describe_tower
    from amp.models.throughput import describe_device, measure_throughput, rebuild

    precision: Precision = args.precision or ("bf16" if device.type == "cuda" and not args.meta else "fp32")
    # Weights matter to neither size nor speed, but a name that is wrong should be told, and widths come with them.
    where = "cpu" if args.pretrained else "meta"
    opened = open_model(args, precision, where)
    base, widths, image_size = opened.base, opened.widths, opened.image_size
    del opened
    dense = rebuild(base, "meta")
    variants = {"dense": None} if widths == dense.widths else {"dense": None, "pruned": widths}
    sizes = {name: describe_tower(rebuild(base, "meta", of_variant)) for name, of_variant in variants.items()}
    record: dict[str, Any] = {"model": args.model, "pretrained": args.pretrained, "image_size": image_size}
    record |= {"widths": widths, "sizes": sizes}
    if not args.meta:
        towers = {name: rebuild(base, str(device), of_variant) for name, of_variant in variants.items()}
        rates = measure_throughput(towers, args.batch_size, args.num_rounds)
        record |= {"device": describe_device(device), "precision": precision}
        record |= {"batch_size": args.batch_size, "num_rounds": args.num_rounds, "throughput": rates}
    if "pruned" in variants:
        record["speedup"] = compare(record)
    return record | {"versions": {package: version(package) for package in PACKAGES}}


def compare(record: dict[str, Any]) -> dict[str, float]:
    """`{theoretical}` speed-up, dense FLOPs by pruned ones; where speed was measured also `{measured, ratio}`."""
    sizes, rates = record["sizes"], record.get("throughput")
    theoretical = sizes["dense"]["flops"] / sizes["pruned"]["flops"]
    if rates is None:
        return {"theoretical": theoretical}
    measured = rates["pruned"]["median"] / rates["dense"]["median"]
    return {"theoretical": theoretical, "measured": measured, "ratio": measured / theoretical}


def show(record: dict[str, Any]) -> None:
    """The table on the console."""
    from amp.run.tables import human, table

    def operations(flops: int) -> str:
        return f"{flops / 1e12:.3f}T" if flops >= 1e11 else human(flops)

    sizes, rates = record["sizes"], record.get("throughput", {})
    rows = [
        ["input, pixels", *(f"{record['image_size']}²" for _ in sizes)],
        ["parameters", *(human(size["params"]) for size in sizes.values())],
        ["MLP share of them", *(f"{size['mlp_params'] / size['params']:.1%}" for size in sizes.values())],
        ["FLOPs without attention products (the paper's)", *(operations(size["flops"]) for size in sizes.values())],
        [
            "FLOPs with attention products",
            *(operations(size["flops_with_attention_products"]) for size in sizes.values()),
        ],
    ]
    if rates:
        spreads = [f"{rate['lower_quartile']:.4g}–{rate['upper_quartile']:.4g}" for rate in rates.values()]
        rows += [
            ["images/s, median", *(f"{rate['median']:.4g}" for rate in rates.values())],
            ["images/s, quartiles", *spreads],
        ]
    say(table(["vision tower", *sizes], rows))
    if rates:
        how = f"batches of {record['batch_size']}, {record['num_rounds']} rounds, {record['precision']} weights"
        say(f"throughput: {how}, {record['device']}")
    if speedup := record.get("speedup"):
        words = [f"{speedup['theoretical']:.2f} in theory (FLOPs, the paper's)"]
        if rates:
            words = [f"{speedup['measured']:.2f} measured", *words, f"ratio {speedup['ratio']:.2f}"]
        say(f"speed-up: {', '.join(words)}")


def main() -> None:
    args = parse_args()

    from amp.run import world as distributed

    with distributed.start("cpu" if args.meta else None) as world:
        record = world.from_main(lambda: measure(args, world.device))
        if args.json and world.is_main:
            write_json(Path(args.json), {**record, "reproduce": reproduce("eval/eval_efficiency.py")})
        show(record)
        if args.json:
            say(args.json)


if __name__ == "__main__":
    run_script(main)
