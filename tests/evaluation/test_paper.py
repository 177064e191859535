"""The table of a run's numbers beside the published ones."""

from typing import Any

from amp.evaluation.paper import DATASETS, MEAN, PUBLISHED, summarise


def record(dataset: str, acc1: float, **more: Any) -> dict[str, Any]:
    metrics = {"acc1": acc1, "acc5": None, "mean_per_class_recall": 0.5}
    return {"model": "m", "pretrained": None, "base": "ViT-g-14", "dataset": dataset, "metrics": metrics, **more}


def test_the_table_stands_beside_the_published_numbers() -> None:
    headers, rows = summarise([record(dataset, 0.7) for dataset in DATASETS])
    assert headers == ["top-1 (%)", *DATASETS, MEAN]
    assert rows == [
        ["m", *["70.00"] * 7],
        ["published: dense", "78.5", "60.8", "90.2", "71.7", "67.5", "69.2", "73.0"],
        ["published: pruned", "65.0", "34.0", "74.4", "57.7", "43.9", "47.9", "53.8"],
        ["published: distilled", "78.4", "60.8", "90.5", "71.5", "67.9", "69.4", "73.1"],
    ]
    several = record("voc2007_multilabel", 0.0, metrics={"mean_average_precision": 0.25})
    headers, rows = summarise([record("objectnet", 0.5), several])
    assert headers == ["top-1 (%)", "objectnet", "voc2007_multilabel (mAP)"]
    assert rows[0] == ["m", "50.00", "25.00"]
    assert rows[1] == ["published: dense", "69.2", "-"]
    assert len(summarise([record("mnist", 0.5)])[1]) == len(summarise([record("objectnet", 1, base="x")])[1]) == 1


def test_published_means_are_those_of_the_six() -> None:
    for of_model in PUBLISHED.values():
        for *six, mean in of_model.values():
            assert abs(sum(six) / 6 - mean) < 0.13
