"""What a student learns from its teacher.

B images, T tokens, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def distillation_loss(
    student_BTD: Tensor, teacher_BTD: Tensor, num_prefix_tokens: int, read_tokens: Sequence[int] = (0,)
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared errors of the last block's output, prefix tokens that are read and patch tokens at equal weight.

    Args:
        student_BTD, teacher_BTD: tokens (B, T, D) before the final norm.
        num_prefix_tokens: how many of the T tokens lead the patch tokens (CLS, registers), >= 0.
        read_tokens: those of them that the feature reads: the CLS token, of a distilled DeiT the second one too; never
            registers.
    Returns:
        (loss, loss_cls, loss_patch), scalars fp32; loss = loss_cls + loss_patch. Where the feature reads no prefix
        token loss_cls is 0.
    """
    error_T = (student_BTD.float() - teacher_BTD.float()).square().mean((0, 2))
    loss_patch = error_T[num_prefix_tokens:].mean()
    # Not by a list of indices, for which a GPU would be waited for.
    read = [error_T[token] for token in read_tokens if token < num_prefix_tokens]
    loss_cls = torch.stack(read).mean() if read else torch.zeros_like(loss_patch)
    return loss_cls + loss_patch, loss_cls, loss_patch
