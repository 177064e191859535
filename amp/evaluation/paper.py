"""The published zero-shot results (arXiv 2603.08100), and the table that puts a run's numbers beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amp.run.tables import percent

# Zero-shot top-1 in percent: the six, and their mean as published (the six of EVA-CLIP-E distilled give 80.9).
DATASETS = ("imagenet1k", "imagenet-a", "imagenet-r", "imagenetv2", "imagenet_sketch", "objectnet")
PUBLISHED = {
    "ViT-g-14": {
        "dense": (78.5, 60.8, 90.2, 71.7, 67.5, 69.2, 73.0),
        "pruned": (65.0, 34.0, 74.4, 57.7, 43.9, 47.9, 53.8),
        "distilled": (78.4, 60.8, 90.5, 71.5, 67.9, 69.4, 73.1),
    },
    "ViT-bigG-14": {
        "dense": (80.1, 69.3, 92.1, 73.6, 68.9, 73.0, 76.2),
        "pruned": (70.2, 37.1, 78.3, 62.7, 50.9, 51.1, 58.4),
        "distilled": (80.1, 68.4, 91.9, 73.4, 68.9, 72.8, 75.9),
    },
    "EVA02-E-14-plus": {
        "dense": (82.0, 82.1, 94.5, 75.7, 71.6, 79.6, 80.9),
        "pruned": (59.2, 18.6, 59.8, 51.3, 34.9, 40.6, 44.1),
        "distilled": (82.0, 82.3, 94.6, 75.1, 71.7, 79.6, 81.0),
    },
    "EVA-CLIP-8B": {
        "dense": (83.5, 85.2, 95.3, 77.7, 74.3, 81.2, 82.9),
        "pruned": (61.7, 49.9, 66.5, 53.1, 34.9, 47.9, 52.3),
        "distilled": (83.7, 85.6, 95.3, 77.7, 74.0, 81.3, 82.9),
    },
}
MEAN = "mean of 6"


def summarise(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows, in percent, of the records of one model and one task.

    Classification: a column per dataset, of top-1 (or of mean average precision, where images have several labels),
    and the mean over the paper's six where they are all there; below, the published rows of the model, where there are
    some. Retrieval: a row per dataset, a column per metric.

    Args:
        records: `{model, pretrained, base, dataset, metrics}` each; `base` is the dense model's name.
    """
    if not any(_main_metric(record) for record in records):
        rows = [[record["dataset"], *map(percent, record["metrics"].values())] for record in records]
        return ["recall (%)", *(name.replace("_retrieval_recall", " ") for name in records[0]["metrics"])], rows
    shares = {_column(record): record["metrics"][_main_metric(record)] for record in records}
    complete = set(DATASETS) <= shares.keys()
    if complete:
        shares[MEAN] = sum(shares[dataset] for dataset in DATASETS) / len(DATASETS)
    rows = [[_name(records[0]), *map(percent, shares.values())]]
    for variant, values in PUBLISHED.get(str(records[0].get("base")), {}).items():
        published = dict(zip((*DATASETS, MEAN), values, strict=True))
        if published.keys() & shares.keys():
            rows.append([f"published: {variant}", *(f"{published[c]:.1f}" if c in published else "-" for c in shares)])
    return ["top-1 (%)", *shares], rows


def _main_metric(record: Mapping[str, Any]) -> str | None:
    return next((name for name in ("acc1", "mean_average_precision") if name in record["metrics"]), None)


def _column(record: Mapping[str, Any]) -> str:
    return record["dataset"] + (" (mAP)" if _main_metric(record) == "mean_average_precision" else "")


def _name(record: Mapping[str, Any]) -> str:
    """The model as it was named: 'ViT-g-14, laion2b_s34b_b88k', 'out/open_clip_g/distilled'."""
    weights = record["pretrained"]
    if record["model"] is None:
        return str(weights)
    tag = Path(weights).name if weights and weights != record["model"] else None
    return f"{record['model']}, {tag}" if tag else str(record["model"])
