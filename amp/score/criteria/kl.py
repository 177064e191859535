"""KL"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
