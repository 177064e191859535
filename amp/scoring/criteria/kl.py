"""Second-order increase of KL(p_dense || p_pruned), where p are an image's similarities to its global batch.

The first-order Taylor term of this divergence is zero. In second order it is half the Fisher information of the
neuron's gate (Fisher pruning, arXiv 1801.05787, and arXiv 2204.09656).

B images of this process's share, A of the global batch, S side in pixels, D width, H hidden width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from amp.run.world import world
from amp.scoring.criterion import Scoring
from amp.scoring.memory import taylor_bytes
from amp.scoring.taylor import TaylorScorer

PASSES = {"activations": taylor_bytes}


def sampled_surprisal(feature_BD: Tensor, anchor_AD: Tensor, inverse_temperature: float, noise_BA: Tensor) -> Tensor:
    """Sum over images of -log p_i(y_i), with y_i drawn from p_i = softmax_a(inverse_temperature * cos(f_i, f_a)).

    p_i is the image's prediction of similarity to the anchors, which are constants. Its gradient's square is, on
    average over draws, the Fisher information.

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


def score(scoring: Scoring) -> list[Tensor]:
    """s_j = 1/2 mean over images of (sum over tokens of a * d(-log p(y))/da)^2, y drawn once an image from p."""
    tower, scale, skipped = scoring.tower, scoring.settings.inverse_temperature, scoring.num_done
    generator = torch.Generator().manual_seed(scoring.settings.seed)
    with TaylorScorer(tower.slots, lambda products_BH: products_BH.square() / 2) as scorer:
        for images_BCSS in scoring.steps(scorer):
            local, size = len(images_BCSS), len(images_BCSS) * world().size
            # The draws of the whole batch on every process, lest they depend on how many there are.
            for _ in range(1 + skipped):
                noise_AA = torch.rand(size, size, generator=generator)
            skipped = 0
            noise_AA = noise_AA.clamp(min=torch.finfo(torch.float32).tiny)
            noise_BA = noise_AA[world().share(size)].to(world().device)
            feature_BD = scorer.embed(tower.feature, images_BCSS, tower.blocks.values(), scoring.settings.micro_batch)
            anchor_AD = world().gather(feature_BD.detach())
            scorer.step(sampled_surprisal(feature_BD, anchor_AD, scale, noise_BA), local)
        return scorer.scores()
