"""The evaluation of one model on one data set or on several: from the options to the files of its results."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from amp.evaluation.options import ZeroshotOptions
from amp.evaluation.results import (
    Evaluation,
    Look,
    digest_model,
    digest_texts,
    open_evaluation,
    open_model,
    with_images,
)
from amp.evaluation.zeroshot.classifiers import classifier_header, load_classifiers, save_classifier
from amp.evaluation.zeroshot.evaluator import DATASET_ROOT, Evaluator
from amp.run.console import say
from amp.run.files import file_sha256
from amp.run.identity import PACKAGES
from amp.run.options import check_writable
from amp.run.world import world


def open_evaluations(each: Sequence[ZeroshotOptions]) -> list[Evaluation[ZeroshotOptions]]:
    """The evaluation of each data set, by the options of `amp.evaluation.options.parse_zeroshot`; nothing is measured.

    Raises:
        UserError: a file cannot be written.
    """
    model = each[0]
    precision = model.precision or ("bf16" if world().device.type == "cuda" else "fp32")

    def open_all() -> list[Evaluation[ZeroshotOptions]]:
        digests, of_texts = digest_model(model), {"text_sha256": file_sha256(model.text_pretrained)}
        for key, file in [("--table", file) for file in model.table] + [("--save_clf", own.save_clf) for own in each]:
            if file:
                check_writable(key, file)
        return [
            with_images(
                open_evaluation(
                    replace(own, precision=precision),
                    (own.dataset, own.task),
                    digests,
                    (*PACKAGES, "clip_benchmark"),
                    load_clfs_sha256=[*map(file_sha256, own.load_clfs)],
                    **(of_texts if own.builds_classifier else {}),
                    **digest_texts(own, "classnames", "templates", "captions"),
                ),
                (DATASET_ROOT, own.dataset_root),
            )
            for own in each
        ]

    return world().from_main(open_all)


def find_record(run: Evaluation[ZeroshotOptions]) -> dict[str, Any] | None:
    """The record, if it and the classifier that is asked for are there. Raises UserError where it is of another run."""
    record, classifier = run.found(run.name), run.config.save_clf
    return record if world().from_main(lambda: classifier is None or Path(classifier).exists()) else None


def open_evaluator(options: ZeroshotOptions) -> Evaluator:
    """The model, on the device of this process.

    Args:
        options: of any of the data sets, of an evaluation that is open.
    Raises:
        UserError: there is no such model, or it lacks the text encoder that is needed.
    """
    assert options.precision is not None
    tower = open_model(options, "fp32", str(world().device), options.text_pretrained)
    evaluator = Evaluator(tower, options.batch_size, options.precision, options.num_workers, options.text_batch_size)
    if not options.load_clfs:
        evaluator.check_text()
    return evaluator


def measure_zeroshot(
    run: Evaluation[ZeroshotOptions], evaluator: Evaluator, look: Look | None = None
) -> dict[str, Any]:
    """The record of one data set, which is written: `{metrics, num_images, seconds, ...}`."""
    options, tower = run.config, evaluator.tower
    dataset = options.benchmark.build(tower.transform)
    if options.benchmark.brings_files:
        run = world().from_main(lambda: with_images(run, (DATASET_ROOT, options.dataset_root)))
    if look:
        look(tower, (dataset,))
    started = time.monotonic()
    if options.task == "zeroshot_retrieval":
        metrics, num_images = evaluator.retrieve(dataset)
    else:
        metrics, num_images = evaluator.classify(dataset, _open_classifier(options, evaluator, dataset))
    record = {key: getattr(options, key) for key in ("model", "pretrained", "task", "dataset")}
    record |= {"base": tower.base["name"], "metrics": metrics, "num_images": num_images}
    return run.write(run.name, {**record, "seconds": round(time.monotonic() - started, 2)})


def _open_classifier(options: ZeroshotOptions, evaluator: Evaluator, dataset: Any) -> Tensor:
    """The (D, C) text classifier, from --load_clfs or from the class names; written to --save_clf."""
    header = classifier_header(evaluator.tower, options.dataset, options.language, dataset)
    if options.load_clfs:
        width, any_model = evaluator.embed_width(), not evaluator.has_text
        classifier_DC = world().from_main(lambda: load_classifiers(options.load_clfs, header, width, any_model))
    else:
        classifier_DC = evaluator.text_classifier(dataset.classes, dataset.templates)
    if options.save_clf and world().is_main:
        save_classifier(Path(options.save_clf), classifier_DC, header)
        say(f"wrote {options.save_clf}")
    return classifier_DC
