"""Laws of the criteria beside the entropy, as functions of tensors.

B images, A anchors, C classes, D width, E embedding width, H hidden width.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from amp.score.criteria.cross_entropy import zero_shot_cross_entropy
from amp.score.criteria.diversity import weight_diversity
from amp.score.criteria.kl import sampled_surprisal
from amp.score.criteria.magnitude import weight_magnitude


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_is_that_of_cosines_times_100() -> None:
    embedding_BE, classifier_EC = normal(6, 5), F.normalize(normal(5, 4, seed=1), dim=0)
    label_B = torch.tensor([0, 3, 1, 1, 2, 0])
    cosine_BC = (embedding_BE / embedding_BE.norm(dim=1, keepdim=True)).double() @ classifier_EC.double()
    expected = -(100 * cosine_BC).log_softmax(dim=1)[torch.arange(6), label_B].sum()
    found = zero_shot_cross_entropy(7 * embedding_BE, classifier_EC, label_B)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    predicted = zero_shot_cross_entropy(embedding_BE, classifier_EC)
    assert torch.equal(predicted, zero_shot_cross_entropy(embedding_BE, classifier_EC, cosine_BC.argmax(dim=1)))
    assert predicted < found


def test_the_mean_square_of_the_surprisals_gradient_is_the_curvature_of_the_kl_divergence() -> None:
    anchor_AD, removed_D = normal(4, 3).double(), normal(3, seed=1).double()
    gate = torch.ones((), dtype=torch.float64, requires_grad=True)

    def feature(gate: Tensor) -> Tensor:
        """An image's feature, to which a gated neuron adds."""
        return (normal(1, 3, seed=2).double() + gate * removed_D).float()

    def log_p(gate: Tensor) -> Tensor:
        cosine_A = F.normalize(feature(gate).double(), dim=-1) @ F.normalize(anchor_AD, dim=-1).T
        return (5 * cosine_A).log_softmax(dim=-1)[0]

    p_A = log_p(gate).exp().detach()
    fisher = torch.zeros(())
    for drawn in range(4):
        noise_1A = torch.full((1, 4), 1e-30)
        noise_1A[0, drawn] = 1 - 2**-24  # forces this draw
        surprisal = sampled_surprisal(feature(gate), anchor_AD, 5.0, noise_1A)
        assert surprisal.item() == pytest.approx(-p_A[drawn].log().item(), rel=1e-4)
        (slope,) = torch.autograd.grad(surprisal, gate)
        fisher += p_A[drawn] * slope.square()
    gone = torch.tensor(1 - 1e-2, dtype=torch.float64)
    divergence = (p_A * (p_A.log() - log_p(gone))).sum()
    assert fisher.item() / 2 * 1e-4 == pytest.approx(divergence.item(), rel=0.05)
    assert divergence > 0


def test_draws_follow_the_prediction() -> None:
    anchor_AD, feature_BD = normal(3, 4), normal(1, 4, seed=1).expand(20_000, 4).clone().requires_grad_()
    noise_BA = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    p_A = (2 * F.normalize(feature_BD[0], dim=0) @ F.normalize(anchor_AD, dim=1).T).softmax(dim=0)
    mean = sampled_surprisal(feature_BD, anchor_AD, 2.0, noise_BA) / 20_000
    assert mean.item() == pytest.approx(-(p_A * p_A.log()).sum().item(), rel=0.02)


def test_magnitude_does_not_change_when_a_neuron_is_rescaled() -> None:
    in_HD, out_DH = normal(7, 4), normal(4, 7, seed=1)
    found_H, scale_H = weight_magnitude(in_HD, out_DH), torch.rand(7, generator=torch.Generator().manual_seed(2)) + 0.1
    torch.testing.assert_close(weight_magnitude(in_HD * scale_H[:, None], out_DH / scale_H), found_H)
    torch.testing.assert_close(weight_magnitude(3 * in_HD, out_DH), 3 * found_H)
    assert found_H[2].item() == pytest.approx(sum(in_HD[2] ** 2).sqrt() * sum(out_DH[:, 2] ** 2).sqrt())


def greedy_order(in_HD: Tensor) -> list[int]:
    """Gram-Schmidt, one neuron at a time; anew with those that are left once nothing is left of them."""
    rest, order = list(range(len(in_HD))), []
    while rest:
        residual_HD = in_HD.double().clone()
        for _ in range(min(len(rest), in_HD.shape[1])):
            best = max(rest, key=lambda j: residual_HD[j].norm().item())
            direction_D = residual_HD[best] / residual_HD[best].norm()
            residual_HD -= torch.outer(residual_HD @ direction_D, direction_D)
            rest.remove(best)
            order.append(best)
    return order


@pytest.mark.parametrize(("neurons", "width"), [(5, 8), (8, 5), (23, 5)])
def test_diversity_is_the_order_of_gram_schmidt(neurons: int, width: int) -> None:
    in_HD = normal(neurons, width)
    score_H = weight_diversity(in_HD)
    assert score_H.argsort(descending=True).tolist() == greedy_order(in_HD)
    assert score_H.max() == 1
    torch.testing.assert_close(score_H.sort().values, torch.arange(1, neurons + 1) / neurons)


def test_a_copy_of_a_neuron_comes_last() -> None:
    in_HD = normal(4, 9)
    in_HD[3] = in_HD[1] * 0.99
    assert weight_diversity(in_HD).argmin() == 3
