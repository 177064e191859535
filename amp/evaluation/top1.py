"""A classifier's own accuracy on class folders, over any number of processes.

The numbers do not depend on the number of processes: batches come from one global list.

Shapes: B images of a batch, C classes of the model, K most likely classes, F class folders.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from amp.data.files import printable
from amp.errors import UserError, joined, nearest
from amp.evaluation.accuracy import Metrics, accuracies
from amp.evaluation.options import Top1Options
from amp.evaluation.readers.class_folders import folder_to_test, some
from amp.evaluation.readers.folders import ClassFolders
from amp.evaluation.readers.texts import read_lines
from amp.evaluation.results import Evaluation, Look, digest_model, digest_texts, open_evaluation, with_images
from amp.evaluation.sharding import ShardedBatches
from amp.run.console import say
from amp.run.identity import PACKAGES
from amp.run.world import world
from amp.towers import Classifier, Tower, find_classifier

_SYNSET = re.compile(r"n\d{8}")


def open_classifier(tower: Tower) -> Classifier:
    """The tower's classifier. Raises UserError where it has none."""
    found = find_classifier(tower)
    if found is None:
        raise UserError(
            "--model",
            f"{tower.base['name']} has no classifier (timm models with classes and transformers models for image "
            "classification have one); use `amp eval knn` or `amp eval probe`",
        )
    return found


def class_order(classifier: Classifier, folders: Sequence[str], labels: str | None = None) -> tuple[list[int], str]:
    """The model's index of each class folder, and by what it was found, for people.

    By the file `labels`, else by the model's own labels, else by the ids of ImageNet, else by the folders' order.

    Args:
        folders: sorted names.
        labels: a file with the class folder of each of the model's outputs, one a line.
    Raises:
        UserError: a folder is no class of the model, or the order cannot be told.
    """
    if labels is not None:
        names = read_lines("--labels", labels)
        if len(names) != classifier.num_classes:
            raise UserError(
                "--labels", f"{labels}: {len(names)} lines, but the model has {classifier.num_classes} classes"
            )
        return _by_names(folders, names, f"{labels} has no line", "--labels"), f"the lines of {labels}"
    own = [_spellings(label) for label in classifier.labels or ()]
    if any(_plain(folder) in of_class for folder in folders for of_class in own):
        order = []
        for folder in folders:
            found = [index for index, of_class in enumerate(own) if _plain(folder) in of_class]
            if len(found) != 1:
                what = "none of the model's labels" if not found else f"{len(found)} of the model's labels"
                close = nearest(folder, classifier.labels or ()) if not found else ""
                told = f"the class folder {printable(folder)} matches {what}{close}"
                advice = "list the class folder of each output in --labels FILE"
                raise UserError("--dataset_root", joined(told, advice))
            order += found
        return order, "the model's own labels"
    if classifier.synsets and all(_SYNSET.fullmatch(folder) for folder in folders):
        told = f"ImageNet's {classifier.num_classes} classes have no"
        return _by_names(folders, classifier.synsets, told, "--dataset_root"), "the ids of ImageNet"
    if len(folders) != classifier.num_classes:
        named = "whose labels differ from the folders' names" if classifier.labels else "which records no labels"
        raise UserError(
            "--dataset_root",
            f"{len(folders)} class folders, but {classifier.num_classes} classes of the model, {named}; "
            "list the class folder of each class in --labels FILE, one per line",
        )
    others = f" (its own labels, such as {classifier.labels[0]!r}, are other names)" if classifier.labels else ""
    return [*range(len(folders))], f"the sorted folders{others}"


def _by_names(folders: Sequence[str], names: Sequence[str], told: str, option: str) -> list[int]:
    place = {name: index for index, name in enumerate(names)}
    if missing := [folder for folder in folders if folder not in place]:
        raise UserError(option, f"{told} {some(missing)}{nearest(missing[0], place)}")
    return [place[folder] for folder in folders]


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def _spellings(label: str) -> set[str]:
    """A label, and its words between commas: 'tench, Tinca tinca'."""
    return {_plain(label), *(_plain(part) for part in label.split(","))}


@dataclass(frozen=True)
class Top1:
    """Measures a classifier, each process on its share of the batches.

    Attributes:
        logits: images (B, 3, S, S) -> (B, C).
        dtype: of the images.
        batch_size: images in one batch on one process.
        num_workers: loader workers per process, at most one a core.
        option: that named the images' folder, for messages.
    """

    logits: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    batch_size: int = 256
    num_workers: int = 4
    option: str = "--dataset_root"

    def measure(self, images: ClassFolders, order: Sequence[int]) -> tuple[Metrics, int]:
        """The metrics, as of `amp.evaluation.accuracy.accuracies`, and the number of images.

        Args:
            order: the model's index of each class of `images`.
        """
        batches = ShardedBatches(self.batch_size, self.num_workers)
        index_F, own = torch.tensor(order), {}
        for index, (images_BCHW, labels_B) in batches.batches(images, default_collate, self.option):
            with torch.no_grad():
                logits_BC = self.logits(images_BCHW.to(world().device, self.dtype)).float().cpu()
            top_BK = logits_BC.topk(min(5, logits_BC.shape[1])).indices
            own[index] = (logits_BC.argmax(dim=1), top_BK, index_F[labels_B])
        columns = batches.columns(own, self.option)
        return world().from_main(lambda: (accuracies(*columns), len(columns[0])))


def open_top1(options: Top1Options) -> Evaluation[Top1Options]:
    """The evaluation; nothing is measured. Raises UserError where its file cannot be written."""

    def opened() -> Evaluation[Top1Options]:
        words = (Path(options.dataset_root).absolute().name, "top1")
        run = open_evaluation(options, words, digest_model(options), PACKAGES, **digest_texts(options, "labels"))
        return with_images(run, ("--dataset_root", options.dataset_root))

    return world().from_main(opened)


def measure_top1(run: Evaluation[Top1Options], tower: Tower, look: Look | None = None) -> dict[str, Any]:
    """The record, which is written: `{metrics, order, num_classes, num_images, seconds, ...}`."""
    options, classifier = run.config, open_classifier(tower)
    images = ClassFolders("--dataset_root", folder_to_test(options.dataset_root), tower.transform)
    order, by = class_order(classifier, images.classes, options.labels)
    say(f"class folders matched to the model's {classifier.num_classes} classes by {by}")
    if look:
        look(tower, (images,))
    started = time.monotonic()
    top1 = Top1(classifier.logits, tower.dtype, options.batch_size, options.num_workers)
    metrics, num_images = top1.measure(images, order)
    record = {
        "model": options.model,
        "pretrained": options.pretrained,
        "metrics": metrics,
        "order_by": by,
        "num_classes": classifier.num_classes,
        "num_images": num_images,
        "seconds": round(time.monotonic() - started, 2),
    }
    return run.write(run.name, record)
