"""Seconds of a zero-shot measurement by this project and by clip_benchmark's own functions, by turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from clip_benchmark.datasets.builder import image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from torch.utils.data import DataLoader, default_collate

from amp.evaluation.options import SpeedOptions
from amp.evaluation.zeroshot import RECALL_KS, Evaluator
from amp.run.console import say
from amp.run.tables import percent, table
from amp.run.world import World, among, world
from amp.towers import Tower

RECALL = "image_retrieval_recall@1"


def compare_speeds(tower: Tower, options: SpeedOptions) -> dict[str, Any]:
    """`{measured: {clip_benchmark, ours, 1 process, ours, N processes}, num_images, device, ...}`; each of `measured`
    is `{seconds, quality}`, quality top-1 or recall@1 of images.

    Args:
        tower: in fp32, on the device of this process.
    """
    dataset = options.benchmark.build(tower.transform)
    alone = World(0, 1, world().device)

    def ours_alone() -> float | None:
        with among(alone):
            return _run_ours(tower, dataset, options)

    variants = {
        "clip_benchmark": lambda: world().from_main(lambda: _run_theirs(tower, dataset, options)),
        "ours, 1 process": lambda: world().from_main(ours_alone),
    }
    if world().size > 1:
        variants[f"ours, {world().size} processes"] = lambda: _run_ours(tower, dataset, options)
    keys = ("model", "pretrained", "task", "dataset", "batch_size", "num_rounds")
    return {
        **{key: getattr(options, key) for key in keys},
        "device": str(world().device),
        "num_images": len(dataset),
        "measured": _time_rounds(variants, options.num_rounds),
    }


def _run_theirs(tower: Tower, dataset: Any, options: SpeedOptions) -> float:
    """Top-1, or recall@1 of images, by clip_benchmark, in fp32, with the loader of its command."""
    retrieval = options.task == "zeroshot_retrieval"
    collate = image_captions_collate_fn if retrieval else default_collate
    loader: DataLoader[Any] = DataLoader(
        dataset, options.batch_size, num_workers=options.num_workers, collate_fn=collate
    )
    tokenizer, device = tower.make_tokenizer(), str(world().device)
    if retrieval:
        ks = list(RECALL_KS)
        metrics = zeroshot_retrieval.evaluate(tower.model, loader, tokenizer, device, amp=False, recall_k_list=ks)
        return metrics[RECALL]
    texts = (tokenizer, dataset.classes, dataset.templates, device)
    classifier = zeroshot_classification.zero_shot_classifier(tower.model, *texts, amp=False)
    logits, labels = zeroshot_classification.run_classification(tower.model, classifier, loader, device, amp=False)
    # Its own top-k, `accuracy`, fails on numpy 2.4.
    return (logits.topk(min(5, logits.shape[1])).indices[:, 0] == labels).sum().item() / len(labels)


def _run_ours(tower: Tower, dataset: Any, options: SpeedOptions) -> float | None:
    """The same by this project, over the processes of the world."""
    evaluator = Evaluator(tower, options.batch_size, "fp32", options.num_workers)
    if options.task == "zeroshot_retrieval":
        return evaluator.retrieve(dataset)[0][RECALL]
    return evaluator.classify(dataset, evaluator.text_classifier(dataset.classes, dataset.templates))[0]["acc1"]


def _time_rounds(variants: Mapping[str, Callable[[], Any]], num_rounds: int) -> dict[str, dict[str, Any]]:
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


def show(record: Mapping[str, Any]) -> None:
    """The table on the console; ratios are to clip_benchmark."""
    heading = "top-1" if record["task"] == "zeroshot_classification" else "recall@1"
    measured = record["measured"]
    theirs = measured["clip_benchmark"]["seconds"]
    rows = [
        [name, f"{one['seconds']:.2f}", f"{theirs / one['seconds']:.2f}", percent(one["quality"])]
        for name, one in measured.items()
    ]
    say(table([f"{record['num_images']} images", "seconds", "times as fast", f"{heading}, %"], rows))
