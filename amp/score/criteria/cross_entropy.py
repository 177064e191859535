"""CROSS"""

import torch.nn.functional as F
from torch import Tensor

ZERO_SHOT_SCALE = 100.0  # of CLIP's cosine similarities, as in clip_benchmark


def zero_shot_cross_entropy(embedding_BE: Tensor, classifier_EC: Tensor, label_B: Tensor | None = None) -> Tensor:
    """Sum over images of -log p_i(y_i), p = softmax(100 * cosine of image and class), as CLIP classifies.

    The criterion that AMP (arXiv 2603.08100) compares its entropy with. Without labels y_i is the network's own
    prediction, argmax p_i: against its own soft p_i the gradient would be zero.

    Args:
        embedding_BE: image embeddings (B, E), need not be normalised.
        classifier_EC: normalised text embeddings of the classes (E, C).
        label_B: int64 classes, or None.
    Returns:
        scalar fp32, in nats.
    """
    logits_BC = ZERO_SHOT_SCALE * F.normalize(embedding_BE.float(), dim=-1) @ classifier_EC
    return F.cross_entropy(logits_BC, logits_BC.argmax(dim=1) if label_B is None else label_B, reduction="sum")
