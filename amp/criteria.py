"""Pure tensor functions: what ranks neurons, and the feature losses of distillation.

B images, T tokens, D width, H hidden neurons, C classes.
"""

import torch
import torch.nn.functional as F
from scipy.linalg import qr
from torch import Tensor

ZERO_SHOT_SCALE = 100.0  # of CLIP's cosine similarities, as in clip_benchmark


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


def sampled_surprisal(feature_BD: Tensor, anchor_AD: Tensor, inverse_temperature: float, noise_BA: Tensor) -> Tensor:
    """Sum over images of -log p_i(y_i), with y_i drawn from p_i = softmax_a(inverse_temperature * cos(f_i, f_a)).

    p_i is the image's prediction of similarity to the anchors, which are constants. Its gradient's square is, on
    average over draws, the Fisher information: KL(p || p with a neuron gone), whose first-order Taylor term is zero,
    is half the Fisher information of the neuron's gate in second order (Fisher pruning, arXiv 1801.05787, and
    arXiv 2204.09656).

    Args:
        feature_BD: image features (B, D). anchor_AD: the features of all images of the global batch (A, D).
        noise_BA: uniform in (0, 1); decides the draws.
    Returns:
        scalar fp32, in nats.
    """
    anchor_AD = F.normalize(anchor_AD.detach().float(), dim=-1)
    log_p_BA = F.log_softmax(inverse_temperature * F.normalize(feature_BD.float(), dim=-1) @ anchor_AD.T, dim=-1)
    # Gumbel: the argmax of log p + g is a draw from p.
    drawn_B = (log_p_BA.detach() - torch.log(-torch.log(noise_BA))).argmax(dim=1)
    return F.nll_loss(log_p_BA, drawn_B, reduction="sum")


def weight_magnitude(in_HD: Tensor, out_DH: Tensor) -> Tensor:
    """(H,) fp32: norm of each neuron's in-projection row times norm of its out-projection column.

    The product is what rescaling a neuron between its two layers leaves as it was; structured magnitude pruning.
    """
    return in_HD.float().norm(dim=1) * out_DH.float().norm(dim=0)


def weight_diversity(in_HD: Tensor) -> Tensor:
    """(H,) fp32, 1 for the neuron picked first, 1/H for the last: Gram-Schmidt on weights (DGMR, arXiv 2506.08591).

    Picks the in-projection row with the largest residual norm, takes its direction off all others, and so on: QR with
    column pivoting. Once the picked rows span all, the rest starts anew with whole rows.
    """
    rest_H = torch.arange(len(in_HD))
    order: list[Tensor] = []
    while len(rest_H):
        rows_RD = in_HD.detach().double().cpu()[rest_H]
        _, pivots = qr(rows_RD.T.numpy(), mode="r", pivoting=True)
        picked, left = torch.from_numpy(pivots).long().tensor_split([min(rows_RD.shape)])
        order.append(rest_H[picked])
        rest_H = rest_H[left].sort().values
    score_H = torch.empty(len(in_HD))
    score_H[torch.cat(order)] = 1 - torch.arange(len(in_HD)) / len(in_HD)
    return score_H


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
