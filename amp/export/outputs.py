"""What a model gives for images: features, embeddings or logits, one vector an image.

B images, C channels, S side in pixels, N numbers of a vector.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from amp.errors import UserError
from amp.towers import Tower

Read = Callable[[Tensor], Tensor]

OUTPUTS = {
    "embeddings": "image embeddings as encode_image returns them, not normalised",
    "logits": "logits of the classifier, one per class",
    "features": "the pooled tokens before any projection or classifier",
}


def default_output(tower: Tower) -> str:
    """What the model's users call it for: embeddings of a dual encoder, logits of a classifier, else features."""
    return next(iter(_readers(tower)))


def reader(tower: Tower, output: str) -> Read:
    """images (B, C, S, S) of the tower's dtype -> that output (B, N).

    Raises:
        UserError: the model has none of that kind.
    """
    readers = _readers(tower)
    if output not in readers:
        raise UserError("--output", f"{output}: {tower.base['name']} has only {' and '.join(readers)}")
    return readers[output]


def labels(tower: Tower) -> list[str] | None:
    """Names of the classes in the order of the logits, where the model's config tells them."""
    names: Mapping[int, str] | None = getattr(getattr(tower.model, "config", None), "id2label", None)
    return [names[index] for index in sorted(names)] if names and "logits" in _readers(tower) else None


@torch.no_grad()
def _readers(tower: Tower) -> dict[str, Read]:
    """Outputs by name, that which the model's users call first."""
    model: Any = tower.model
    if tower.encode_image is not None:
        return {"embeddings": tower.encode_image, "features": tower.feature}
    if getattr(model, "num_classes", 0):  # a classifier of timm
        return {"logits": model, "features": tower.feature}
    given = model(tower.blank())
    parts = {"embeddings": "image_embeds", "logits": "logits"}
    found: dict[str, Read] = {
        name: partial(_part, model, part)
        for name, part in parts.items()
        if getattr(getattr(given, part, None), "ndim", 0) == 2
    }
    return {**found, "features": tower.feature}


def _part(model: Any, part: str, images_BCSS: Tensor) -> Tensor:
    """One part of what a model of transformers gives."""
    own_BN: Tensor = getattr(model(images_BCSS), part)
    return own_BN
