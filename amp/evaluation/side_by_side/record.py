"""The file of a comparison, which the next call finds again, and its table."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amp.errors import under
from amp.evaluation.options import CompareOptions, ModelOptions
from amp.evaluation.results import Evaluation, Look, digest_model, digest_texts, open_evaluation, with_images
from amp.evaluation.side_by_side.agreement import agree
from amp.evaluation.side_by_side.models import Dense, find_dense, is_of, open_pruned, pruned_on, weights_beside_blocks
from amp.evaluation.side_by_side.sides import Side, choose_tasks, measure_side, open_data, takes_for_classes
from amp.run.console import progress_of, say
from amp.run.identity import PACKAGES
from amp.run.tables import human, percent, table
from amp.run.world import world
from amp.towers import known_weights, library

_NAMES = {"zeroshot": "zero-shot", "retrieval": "retrieval", "knn": "k-NN", "probe": "linear probe", "top1": "top-1"}
_OF_METRICS = {"acc1": "top-1", "acc5": "top-5", "mean_per_class_recall": "mean per class"}


def open_comparison(options: CompareOptions) -> tuple[Evaluation[CompareOptions], Dense]:
    """The evaluation, and the dense model, which is not open yet; nothing is measured.

    Raises:
        UserError: FOLDER is none of a pruned model, or its dense model is not known, or the file cannot be written.
    """

    def opened() -> tuple[Evaluation[CompareOptions], Dense]:
        dense = find_dense(options)
        of_dense = digest_model(ModelOptions(model=dense.name, pretrained=dense.pretrained))
        run = open_evaluation(
            options,
            ("compare",),
            digest_model(ModelOptions(model=options.folder)),
            (*PACKAGES, "scikit-learn"),
            **{f"dense_{key}": value for key, value in of_dense.items()},
            **digest_texts(options, "captions", "classnames", "templates", "labels"),
        )
        roots = {"--images": options.images, "--dataset_root": options.dataset_root}
        return with_images(run, *((key, root) for key, root in roots.items() if root)), dense

    return world().from_main(opened)


def measure_comparison(run: Evaluation[CompareOptions], found: Dense, look: Look | None = None) -> dict[str, Any]:
    """The record, which is written: `{sizes, metrics, agreement, head, num_images, notes, ...}`, `sizes` and `metrics`
    of `dense` and of `pruned`. One model after the other is in memory."""
    options, device, started = run.config, str(world().device), time.monotonic()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(f"note: {text}")
        say(notes[-1])

    shapes = found.open(options, "meta")  # what is wrong with it is told before the pruned one is measured
    frame = shapes.base["frame"]
    if not (known_weights(found.pretrained, frame) or Path(found.name).is_dir() or library(frame).folders):
        note(f"the dense {found.name} has random weights; use --pretrained to give others")
    pruned = open_pruned(options, found.pruned, device)
    if seen := pruned_on(found.pruned, (options.images, options.dataset_root)):
        note(f"the pruning used or held out images of {seen}; on new images, the pruned model may be worse")
    with under("--dataset_root", instead_of="--train_root"), under("--dataset_root", instead_of="--val_root"):
        data = open_data(options, pruned.transform)
    tasks = choose_tasks(data, pruned)
    with_head = takes_for_classes(data, pruned, tasks)
    difference, own_weights = shapes.difference(pruned.base), weights_beside_blocks(pruned)
    if difference:
        key, own, other = difference
        note(f"{options.folder} was not pruned from {found.name}: its {key} is {own!r} instead of {other!r}")
    with progress_of("pruned model"):
        sides = {"pruned": measure_side(pruned, data, tasks, with_head, look)}
    del pruned
    dense = found.open(options, device, shapes)
    if not difference and not is_of(own_weights, weights_beside_blocks(dense)):
        note(
            f"{options.folder} was not pruned from these weights of {found.name}: none outside the blocks is the "
            "same; give the weights that it was pruned from as --pretrained"
        )
    with under("--dense", instead_of="--model"), progress_of("dense model"):
        sides["dense"] = measure_side(dense, data, tasks, with_head)
    return run.write(
        run.name,
        {
            "dense": found.name,
            "dense_pretrained": found.pretrained,
            "pruned": options.folder,
            **{key: {side: getattr(sides[side], key) for side in ("dense", "pruned")} for key in ("sizes", "metrics")},
            "agreement": _agreement(sides["dense"], sides["pruned"]),
            "head": sides["pruned"].head,
            "num_images": len(data.files),
            "num_test_images": len(data.val) if data.val else None,
            "num_train_images": len(data.train) if data.train else None,
            "notes": notes,
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def _agreement(dense: Side, pruned: Side) -> dict[str, float | None]:
    same_classes = dense.head == pruned.head
    outputs = (side.outputs if same_classes else side.outputs[:1] for side in (dense, pruned))
    return agree(*outputs)


def show(run: Evaluation[CompareOptions], record: Mapping[str, Any]) -> None:
    """The tables on the console, and where the record is."""
    sizes, metrics = record["sizes"], record["metrics"]
    rows = [
        ["tower parameters", *(human(sizes[side]["params"]) for side in sizes)],
        ["tower FLOPs", *(human(sizes[side]["flops"]) for side in sizes)],
    ]
    for task, of_dense in metrics["dense"].items():
        for name, value in of_dense.items():
            if value is not None:
                told = f"{_NAMES[task]}, {_named(name)} (%)"
                rows.append([told, percent(value), percent(metrics["pruned"][task][name])])
    weights = f" ({record['dense_pretrained']})" if record["dense_pretrained"] else ""
    say(f"pruned: {record['pruned']}\ndense: {record['dense']}{weights}")
    say(table([f"measured in {record['seconds']:.0f} s", *sizes], rows))
    own, head = record["agreement"], record["head"]
    lines = [
        ("cosine of the features, mean", "cosine_mean", "{:.4f}"),
        ("cosine of the features, 5th percentile", "cosine_p5", "{:.4f}"),
        ("cosine of the features, minimum", "cosine_min", "{:.4f}"),
        ("same nearest neighbour (%)", "same_nearest", ""),
        (f"same top-1, {head} (%)", "same_top1", ""),
    ]
    agreed = [
        [words, form.format(own[key]) if form else percent(own[key])]
        for words, key, form in lines
        if own[key] is not None
    ]
    heading = f"agreement of pruned and dense on {record['num_images']} images"
    say(f"\n{table([heading, ''], agreed)}\nnumbers: {run.path(run.name)}")


def _named(metric: str) -> str:
    if metric.startswith("knn"):
        return f"k = {metric.removeprefix('knn')}"
    return _OF_METRICS.get(metric, metric.replace("_", " "))
