"""The information entropy of a batch's features (AMP, arXiv 2603.08100): what ranks neurons and judges widths.

B images, D width.
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
