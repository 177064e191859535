"""The classifier that a model ends in: of timm one with `num_classes`, of transformers one for image classification.

Shapes: B images, C classes, S side in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from amp.towers.base import Tower

_IMAGENET = 1000


@dataclass(frozen=True)
class Classifier:
    """What a model says of images.

    Attributes:
        logits: images (B, 3, S, S) -> (B, C).
        num_classes: C.
        labels: what the model calls its classes, by index; None where it does not name them.
        synsets: ImageNet's ids of as many classes ('n01440764'), by index; None where ImageNet has no such set.
    """

    logits: Callable[[Tensor], Tensor]
    num_classes: int
    labels: tuple[str, ...] | None
    synsets: tuple[str, ...] | None


def find_classifier(tower: Tower) -> Classifier | None:
    """Of a tower whose model has one; None of the others, such as CLIP's and timm's without classes."""
    model: Any = tower.model
    if hasattr(model, "get_classifier") and model.num_classes:
        labels = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
        count = int(model.num_classes)
        return Classifier(model, count, _whole(labels, count), _synsets(count))
    if "ForImageClassification" in type(model).__name__:
        count = int(model.config.num_labels)
        by_index = model.config.id2label or {}
        labels = [by_index.get(index) for index in range(count)]
        if labels == [f"LABEL_{index}" for index in range(count)]:
            labels = None  # transformers' own, where the model names none
        return Classifier(
            partial(_logits, model), count, _whole(labels, count), _synsets(count) if count == _IMAGENET else None
        )
    return None


def _logits(model: Any, images_BCHW: Tensor) -> Tensor:
    logits_BC: Tensor = model(pixel_values=images_BCHW, return_dict=True).logits
    return logits_BC


def _whole(labels: Any, count: int) -> tuple[str, ...] | None:
    if labels is None or len(labels) != count or not all(isinstance(label, str) for label in labels):
        return None
    return tuple(labels)


def _synsets(count: int) -> tuple[str, ...] | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    return tuple(ImageNetInfo(subset).label_names()) if subset else None
