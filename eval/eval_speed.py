"""Seconds of a zero-shot measurement: ours against clip_benchmark's own functions, on the same model, data and
batch, side by side in one run. Under torchrun the main process measures both alone, and all of them together ours."""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amp.evaluate import results
from amp.evaluate.benchmarks import Benchmark
from amp.evaluate.layouts import NEEDS
from amp.run.console import reproduce, run_script, say
from amp.run.files import write_json

RECALL = "image_retrieval_recall@1"


def parse_args() -> argparse.Namespace:
    """The command line; mistakes in it exit with 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    results.add_model_options(parser)
    add = parser.add_argument
    add("--batch_size", type=int, default=64, help="images in one batch on one process (default: %(default)s)")
    add("--task", choices=[*NEEDS], default="zeroshot_classification", help="what is measured (default: %(default)s)")
    add("--dataset", required=True, metavar="NAME", help="clip_benchmark's name of it, or digit_scenes (required)")
    add("--dataset_root", required=True, metavar="DIR", help="folder of the dataset (required)")
    add("--num_rounds", type=int, default=3, help="runs of each, by turns, after one to warm up (default: %(default)s)")
    add("--num_workers", type=int, default=4, help="loader workers per process (default: %(default)s)")
    add("--json", metavar="FILE", help="write the numbers here (default: nowhere)")
    args = parser.parse_args()
    results.check_options(parser, args, {"batch_size": 1, "num_rounds": 1, "num_workers": 0})
    if "/" in args.dataset:
        parser.error(f"argument --dataset: {args.dataset} is a stream; name one whose images lie in folders")
    return args


def run_theirs(tower: Any, dataset: Any, args: argparse.Namespace, device: Any) -> float:
    """Top-1, or recall@1 of images, by clip_benchmark, in fp32, with the loader of its command."""
    from clip_benchmark.datasets.builder import image_captions_collate_fn
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    from torch.utils.data import DataLoader, default_collate

    retrieval = args.task == "zeroshot_retrieval"
    collate = image_captions_collate_fn if retrieval else default_collate
    loader = DataLoader(dataset, args.batch_size, num_workers=args.num_workers, collate_fn=collate)
    tokenizer, device = tower.make_tokenizer(), str(device)
    if retrieval:
        ks = {"recall_k_list": [1, 5, 10]}
        metrics = zeroshot_retrieval.evaluate(tower.model, loader, tokenizer, device, amp=False, **ks)
        return metrics[RECALL]
    texts = (tokenizer, dataset.classes, dataset.templates, device)
    classifier = zeroshot_classification.zero_shot_classifier(tower.model, *texts, amp=False)
    logits, labels = zeroshot_classification.run_classification(tower.model, classifier, loader, device, amp=False)
    # Its own top-k, `accuracy`, fails on numpy 2.4.
    return (logits.topk(min(5, logits.shape[1])).indices[:, 0] == labels).sum().item() / len(labels)


def run_ours(tower: Any, dataset: Any, args: argparse.Namespace) -> float | None:
    """The same by this project."""
    from amp.evaluate.zeroshot import Evaluator

    evaluator = Evaluator(tower, args.batch_size, "fp32", args.num_workers)
    if args.task == "zeroshot_retrieval":
        return evaluator.retrieve(dataset)[0][RECALL]
    return evaluator.classify(dataset, evaluator.text_classifier(dataset.classes, dataset.templates))[0]["acc1"]


def time_rounds(variants: dict[str, Callable[[], Any]], num_rounds: int) -> dict[str, dict[str, Any]]:
    """`{name: {seconds, quality}}`, seconds as medians. Each round runs every variant in turn, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    quality: dict[str, Any] = {}
    for number in range(num_rounds + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            quality[name] = run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: {"seconds": statistics.median(seconds[name]), "quality": quality[name]} for name in variants}


def show(record: dict[str, Any]) -> None:
    """The table on the console; ratios are to clip_benchmark."""
    from amp.run.tables import percent, table

    heading = "top-1" if record["task"] == "zeroshot_classification" else "recall@1"
    measured = record["measured"]
    theirs = measured["clip_benchmark"]["seconds"]
    rows = [
        [name, f"{one['seconds']:.2f}", f"{theirs / one['seconds']:.2f}", percent(one["quality"])]
        for name, one in measured.items()
    ]
    say(table([f"{record['num_images']} images", "seconds", "times as fast", f"{heading}, %"], rows))


def main() -> None:
    args = parse_args()
    benchmark = Benchmark(args.task, args.dataset, args.dataset_root)
    benchmark.check()

    from amp.run import world as distributed

    with distributed.start() as world:
        tower = results.open_model(args, "fp32", str(world.device))
        dataset = benchmark.build(tower.transform)

        def run_alone() -> float | None:
            with distributed.among(distributed.World(0, 1, world.device)):
                return run_ours(tower, dataset, args)

        variants = {
            "clip_benchmark": lambda: world.from_main(lambda: run_theirs(tower, dataset, args, world.device)),
            "ours, 1 process": lambda: world.from_main(run_alone),
        }
        if world.size > 1:
            variants[f"ours, {world.size} processes"] = lambda: run_ours(tower, dataset, args)
        measured = time_rounds(variants, args.num_rounds)
        record = {
            key: getattr(args, key) for key in ("model", "pretrained", "task", "dataset", "batch_size", "num_rounds")
        }
        record |= {"device": str(world.device), "num_images": len(dataset), "measured": measured}
        if world.is_main:
            show(record)
            if args.json:
                write_json(Path(args.json), {**record, "reproduce": reproduce("eval/eval_speed.py")})


if __name__ == "__main__":
    run_script(main)
