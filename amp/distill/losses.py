"""What a student learns from its teacher.

B images, T tokens, D width.
"""

import torch
from torch import Tensor


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
