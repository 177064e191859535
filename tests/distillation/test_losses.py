"""Laws of the distillation loss."""

import pytest
import torch
import torch.nn.functional as F

from amp.distillation.losses import distillation_loss


def test_distillation_loss_is_the_sum_of_its_parts_at_equal_weight() -> None:
    student_BTD, teacher_BTD = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(0)).unbind()
    loss, loss_cls, loss_patch = distillation_loss(student_BTD, teacher_BTD, num_prefix_tokens=1)
    assert torch.equal(loss, loss_cls + loss_patch)
    torch.testing.assert_close(loss_cls, F.mse_loss(student_BTD[:, 0], teacher_BTD[:, 0]))
    torch.testing.assert_close(loss_patch, F.mse_loss(student_BTD[:, 1:], teacher_BTD[:, 1:]))
    # Equal weight of the two parts, not of the tokens: 6 patch tokens do not outvote the one CLS token.
    assert loss.item() != pytest.approx(F.mse_loss(student_BTD, teacher_BTD).item(), rel=1e-2)


def test_distillation_loss_is_zero_only_for_equal_tokens() -> None:
    tokens_BTD = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert [part.item() for part in distillation_loss(tokens_BTD, tokens_BTD.clone(), 1)] == [0.0, 0.0, 0.0]
    for token, (moves_cls, moves_patch) in {0: (True, False), 4: (False, True)}.items():
        moved_BTD = tokens_BTD.clone()
        moved_BTD[1, token, 2] += 2.0
        loss, loss_cls, loss_patch = distillation_loss(moved_BTD, tokens_BTD, 1)
        assert loss.item() > 0
        assert (loss_cls.item() > 0, loss_patch.item() > 0) == (moves_cls, moves_patch)


def test_prefix_tokens_are_no_patch_tokens() -> None:
    """CLS is the first token; registers behind it are neither CLS nor patch; without a prefix all are patches."""
    student_BTD, teacher_BTD = torch.randn(2, 3, 9, 4, generator=torch.Generator().manual_seed(0)).unbind()
    _, loss_cls, loss_patch = distillation_loss(student_BTD, teacher_BTD, num_prefix_tokens=5)
    torch.testing.assert_close(loss_cls, F.mse_loss(student_BTD[:, 0], teacher_BTD[:, 0]))
    torch.testing.assert_close(loss_patch, F.mse_loss(student_BTD[:, 5:], teacher_BTD[:, 5:]))

    loss, loss_cls, loss_patch = distillation_loss(student_BTD, teacher_BTD, num_prefix_tokens=0)
    assert loss_cls.item() == 0.0
    assert torch.equal(loss, loss_patch)
    torch.testing.assert_close(loss_patch, F.mse_loss(student_BTD, teacher_BTD))


def test_the_first_loss_is_of_the_prefix_tokens_that_are_read() -> None:
    """Both of a distilled DeiT; none of the registers of a tower whose feature is the mean of its patches."""
    student_BTD, teacher_BTD = torch.randn(2, 3, 9, 4, generator=torch.Generator().manual_seed(0)).unbind()
    _, loss_cls, loss_patch = distillation_loss(student_BTD, teacher_BTD, 2, (0, 1))
    torch.testing.assert_close(loss_cls, F.mse_loss(student_BTD[:, :2], teacher_BTD[:, :2]))
    torch.testing.assert_close(loss_patch, F.mse_loss(student_BTD[:, 2:], teacher_BTD[:, 2:]))
    loss, loss_cls, loss_patch = distillation_loss(student_BTD, teacher_BTD, 4, ())
    assert loss_cls.item() == 0.0
    torch.testing.assert_close(loss, F.mse_loss(student_BTD[:, 4:], teacher_BTD[:, 4:]))


def test_distillation_loss_of_bf16_tokens_is_computed_in_fp32() -> None:
    student_BTD, teacher_BTD = torch.randn(2, 3, 9, 4, generator=torch.Generator().manual_seed(0)).bfloat16().unbind()
    found = distillation_loss(student_BTD, teacher_BTD, 1)
    assert all(part.dtype == torch.float32 for part in found)
    assert found == distillation_loss(student_BTD.float(), teacher_BTD.float(), 1)
