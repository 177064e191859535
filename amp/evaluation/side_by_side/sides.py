"""What the data and the models of a comparison allow, and what is measured of each model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch import Tensor

from amp.errors import UserError
from amp.evaluation.accuracy import Metrics
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.knn import KS, Featurizer, accuracies_of
from amp.evaluation.options import CompareOptions
from amp.evaluation.options.compare import TASKS, Measured
from amp.evaluation.probe import held_out_images, probe_accuracies
from amp.evaluation.readers.captions import Captioned
from amp.evaluation.readers.class_folders import images_below
from amp.evaluation.readers.folders import ClassFolders, ImageFiles, open_divided
from amp.evaluation.readers.texts import TEMPLATES, name_classes, read_lines, read_templates
from amp.evaluation.results import Look
from amp.evaluation.sharding import ShardedBatches
from amp.evaluation.side_by_side.agreement import read_outputs
from amp.evaluation.top1 import Top1, class_order, open_classifier
from amp.evaluation.zeroshot import Evaluator
from amp.models.sizes import describe_tower
from amp.models.throughput import rebuild
from amp.run.console import say
from amp.run.world import world
from amp.towers import Tower, find_classifier

DATASET_ROOT = "--dataset_root"

# Data sets that pass a model, and what gives the metrics of them by task.
Step = tuple[Sequence[Any], Callable[[], dict[str, Metrics]]]


@dataclass(frozen=True)
class Side:
    """What is known of one model.

    Attributes:
        sizes: as of `amp.models.sizes.describe_tower`.
        metrics: by task.
        outputs: on the images of the agreement, as of `read_outputs`.
        head: what took these for classes, for people; None where nothing did.
    """

    sizes: dict[str, int]
    metrics: dict[str, Metrics]
    outputs: list[Tensor]
    head: str | None


@dataclass(frozen=True)
class Data:
    """The images and words of a comparison, opened once.

    Attributes:
        train, val: class folders to learn from and to test on; None without --dataset_root.
        files: of the agreement.
        files_option: that named their folder.
        classes: the names between which a text classifier chooses; None without any.
        templates: its prompts.
    """

    options: CompareOptions
    train: ClassFolders | None
    val: ClassFolders | None
    files: list[str]
    files_option: str
    classes: list[str] | None
    templates: list[str]

    @cached_property
    def pairs(self) -> Captioned:
        """The images with captions; their file is read once."""
        own = self.options
        built = Benchmark("zeroshot_retrieval", "captions", str(own.images), captions=own.captions).build(
            lambda image: image
        )
        assert isinstance(built, Captioned)
        return built


def open_data(options: CompareOptions, transform: Callable[[Any], Any]) -> Data:
    """Raises UserError for folders and files that are not what they should be."""
    train = val = classes = None
    train_root, val_root, held_out = options.roots.values()
    if val_root:
        learns = held_out or options.asks_for("knn") or options.asks_for("probe")
        train, val = open_divided(train_root if learns else val_root, val_root, held_out, transform)
        classes = name_classes(val.classes, "--classnames", options.classnames)
    elif options.classnames:
        classes = read_lines("--classnames", options.classnames)
    if options.images:
        option, files = "--images", sorted(images_below("--images", options.images))
    else:
        option, files = DATASET_ROOT, [file for file, _ in val.samples] if val else []
    if len(files) > options.num_images:
        say(
            f"agreement is measured on {options.num_images} of {len(files)} images, spread evenly; use --num_images "
            "for more"
        )
        places = np.linspace(0, len(files) - 1, options.num_images).round().astype(int)
        files = [files[place] for place in places]
    templates = read_templates("--templates", options.templates) if options.templates else [*TEMPLATES]
    return Data(options, train, val, files, option, classes, templates)


def choose_tasks(data: Data, tower: Tower) -> list[Measured]:
    """The tasks that the options ask for. Of --tasks each one; else all that the data and the model allow, and what is
    left out is said.

    Raises:
        UserError: one of --tasks cannot be measured.
    """
    chosen: list[Measured] = []
    for task in TASKS:
        if data.options.asks_for(task):
            try:
                _check(task, data, tower)
            except UserError as error:
                if data.options.tasks:
                    raise
                say(f"skipped {task}: {error.text}")
            else:
                chosen.append(task)
    return chosen


def _check(task: Measured, data: Data, tower: Tower) -> None:
    if task in ("zeroshot", "retrieval"):
        check_texts(tower)
    elif task == "top1":
        assert data.val is not None
        class_order(open_classifier(tower), data.val.classes, data.options.labels)
    else:
        assert data.train is not None
        if task == "knn" and len(data.train) < KS[0]:
            raise UserError(DATASET_ROOT, f"{len(data.train)} training images are too few; the smallest k is {KS[0]}")
        if task == "probe":
            held_out_images(np.array([label for _, label in data.train.samples]), DATASET_ROOT)


def check_texts(tower: Tower) -> None:
    """Raises UserError unless the model reads texts, and its tokenizer is there and one of it."""
    Evaluator(tower).check_text()
    tower.make_tokenizer()(["a"])


def takes_for_classes(data: Data, tower: Tower, tasks: Sequence[Measured]) -> bool:
    """Whether the model can say of any image which class it is: by its classifier, or by the names of classes."""
    if find_classifier(tower) is not None or "zeroshot" in tasks:
        return True
    if data.classes is None or tower.encode_text is None:
        return False
    try:
        check_texts(tower)
    except UserError as error:
        say(f"agreement is measured without the same top-1: {error}")
        return False
    return True


def measure_side(
    tower: Tower, data: Data, tasks: Sequence[Measured], with_head: bool, look: Look | None = None
) -> Side:
    """Everything of one model, in fp32.

    Args:
        with_head: whether the images of the agreement are taken for classes.
        look: is shown the model, and the data sets as often as each will pass it.
    """
    own, files = data.options, ImageFiles(data.files, tower.transform)
    evaluator = Evaluator(tower, own.batch_size, "fp32", own.num_workers)
    steps = _steps(evaluator, data, tasks)
    if look:
        look(tower, [files, *(images for shown, _ in steps for images in shown)])
    metrics: dict[str, Metrics] = {}
    for _, measure in steps:
        metrics |= measure()
    head, logits = _head(evaluator, data) if with_head else (None, None)
    outputs = read_outputs(tower, files, logits, ShardedBatches(own.batch_size, own.num_workers), data.files_option)
    sizes = world().from_main(lambda: describe_tower(rebuild(tower.base, "meta", tower.counts)))
    return Side(sizes, metrics, outputs, head)


def _steps(evaluator: Evaluator, data: Data, tasks: Sequence[Measured]) -> list[Step]:
    tower, steps = evaluator.tower, list[Step]()
    if "retrieval" in tasks:
        pairs = data.pairs.seen_by(tower.transform)
        steps.append(([pairs], lambda: {"retrieval": evaluator.retrieve(pairs)[0]}))
    if data.train is None or data.val is None:
        return steps
    train, val = data.train.seen_by(tower.transform), data.val.seen_by(tower.transform)
    if "zeroshot" in tasks:
        steps.insert(0, ([val], lambda: {"zeroshot": evaluator.classify(val, _classifier(evaluator, data))[0]}))
    if {"knn", "probe"} & {*tasks}:
        steps.append(([train, val], lambda: _learn(tower, train, val, data.options, tasks)))
    if "top1" in tasks:
        steps.append(([val], lambda: {"top1": _top1(tower, val, data.options)}))
    return steps


def _classifier(evaluator: Evaluator, data: Data) -> Tensor:
    assert data.classes is not None
    return evaluator.text_classifier(data.classes, data.templates)


def _learn(
    tower: Tower, train: ClassFolders, val: ClassFolders, own: CompareOptions, tasks: Sequence[Measured]
) -> dict[str, Metrics]:
    """k-NN and the linear probe, of the same features."""
    featurizer = Featurizer(tower, own.batch_size, own.num_workers, DATASET_ROOT)
    of_train, of_val = featurizer.features(train, "train"), featurizer.features(val, "val")
    metrics: dict[str, Metrics] = {}
    if "knn" in tasks:
        metrics["knn"] = {**accuracies_of(of_train, of_val, [k for k in KS if k <= len(train)])}
    if "probe" in tasks:
        metrics["probe"] = probe_accuracies(of_train, of_val)[0]
    return metrics


def _top1(tower: Tower, val: ClassFolders, own: CompareOptions) -> Metrics:
    classifier = open_classifier(tower)
    top1 = Top1(classifier.logits, tower.dtype, own.batch_size, own.num_workers)
    return top1.measure(val, class_order(classifier, val.classes, own.labels)[0])[0]


def _head(evaluator: Evaluator, data: Data) -> tuple[str | None, Callable[[Tensor], Tensor] | None]:
    """What takes an image for a class: the model's classifier, else the text classifier of the class names; None where
    there is neither, as of a dense model of another kind."""
    classifier = find_classifier(evaluator.tower)
    if classifier is not None:
        return f"its classifier of {classifier.num_classes} classes", classifier.logits
    if data.classes is None or not evaluator.has_text:
        return None, None
    classifier_DC = _classifier(evaluator, data).to(world().device)
    return f"zero-shot, {len(data.classes)} classes", partial(evaluator.logits, classifier_DC=classifier_DC)
