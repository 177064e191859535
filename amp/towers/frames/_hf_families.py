"""The vision architectures of transformers that can be pruned, and what their configs do not say of them."""

from dataclasses import dataclass
from typing import Any

from transformers.utils import constants

from amp.errors import UserError
from amp.settings.model import ModelSettings

CLIP_STATISTICS = (constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD)
HALF_STATISTICS = (constants.IMAGENET_STANDARD_MEAN, constants.IMAGENET_STANDARD_STD)
IMAGENET_STATISTICS = (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)


@dataclass(frozen=True)
class Family:
    """What the method must know of a vision architecture that its config does not say.

    Attributes:
        prefix: tokens before the patch tokens, without registers.
        pooled: whether the feature is the model's own pooler output, where it has one.
        statistics: mean and deviation of its images, for folders without an image processor.
        any_size: whether it takes images of another size than the config's.
    """

    prefix: int
    pooled: bool
    statistics: tuple[list[float], list[float]]
    any_size: bool = False


# By the vision config's model_type.
FAMILIES = {
    "clip_vision_model": Family(1, True, CLIP_STATISTICS),
    "metaclip_2_vision_model": Family(1, True, CLIP_STATISTICS),
    "mlcd_vision_model": Family(1, True, CLIP_STATISTICS),
    "siglip_vision_model": Family(0, True, HALF_STATISTICS),
    "aimv2_vision_model": Family(0, True, CLIP_STATISTICS),
    "beit": Family(1, True, HALF_STATISTICS),
    "data2vec-vision": Family(1, True, HALF_STATISTICS),
    "flava_image_model": Family(1, False, CLIP_STATISTICS),
    "vit": Family(1, False, HALF_STATISTICS),
    "vit_msn": Family(1, False, IMAGENET_STATISTICS),
    "deit": Family(2, False, IMAGENET_STATISTICS),
    "ijepa": Family(0, False, HALF_STATISTICS),
    "dinov2": Family(1, False, IMAGENET_STATISTICS, any_size=True),
    "dinov2_with_registers": Family(1, False, IMAGENET_STATISTICS, any_size=True),
    "dinov3_vit": Family(1, False, IMAGENET_STATISTICS, any_size=True),
}
HIERARCHICAL = "is hierarchical; plain vision transformers can be pruned"
REFUSED = {
    "siglip2_vision_model": "is NaFlex, which takes patches instead of images (fixed-size SigLIP 2 is 'siglip')",
    "vit_mae": "drops patches at random, even in evaluation; load its encoder as a 'vit'",
    **dict.fromkeys(("swin", "swinv2", "hiera", "pvt", "pvt_v2", "segformer", "focalnet", "cvt"), HIERARCHICAL),
    **dict.fromkeys(("convnext", "convnextv2", "dinov3_convnext", "resnet"), "is a convolutional network"),
}


def family_of(settings: ModelSettings, vision_config: Any) -> Family:
    """Of a vision config. Raises UserError for an architecture that cannot be pruned."""
    kind = vision_config.model_type
    if kind not in FAMILIES:
        reason = REFUSED.get(kind, f"is not one of the supported vision transformers: {', '.join(FAMILIES)}")
        raise UserError("model.name", f"{settings.name}: {kind!r} {reason}")
    return FAMILIES[kind]
