"""Pure tensor functions: the information entropy of a batch, and the feature losses of distillation.

B images, T tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def information_entropy(feature_BD: Tensor, inverse_temperature: float) -> Tensor:
    """Mean entropy of the rows of the batch's softmaxed similarities (AMP, arXiv 2603.08100).

    Features are L2-normalised; logits = inverse_temperature * f f^T with the diagonal; p = softmax of each
    row; E = mean over rows of -sum_j p_ij log p_ij. Computed in fp32 whatever the features' dtype.

    Args:
        feature_BD: image features (B, D), after the final norm and before projection or head.
        inverse_temperature: factor on the cosine similarities, > 0.
    Returns:
        scalar fp32, in nats, 0 <= E <= log B.
    """
    unit_BD = F.normalize(feature_BD.float(), dim=-1)
    with torch.autocast(feature_BD.device.type, enabled=False):
        logits_BB = inverse_temperature * unit_BD @ unit_BD.T
        # Through log-softmax: p * log p written directly is NaN once a probability underflows.
        log_p_BB = F.log_softmax(logits_BB, dim=-1)
        return -(log_p_BB.exp() * log_p_BB).sum(dim=-1).mean()


def distillation_loss(
    student_BTD: Tensor, teacher_BTD: Tensor, num_prefix_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared errors of the last block's output, prefix (CLS) and patch tokens at equal weight.

    Args:
        student_BTD, teacher_BTD: tokens (B, T, D) before the final norm.
        num_prefix_tokens: how many of the T tokens lead the patch tokens (CLS, registers), >= 0.
    Returns:
        (loss, loss_cls, loss_patch), scalars fp32; loss = loss_cls + loss_patch. Without prefix tokens
        loss_cls is 0.
    """
    squared_BTD = (student_BTD.float() - teacher_BTD.float()).square()
    loss_patch = squared_BTD[:, num_prefix_tokens:].mean()
    loss_cls = squared_BTD[:, :1].mean() if num_prefix_tokens else torch.zeros_like(loss_patch)
    return loss_cls + loss_patch, loss_cls, loss_patch
