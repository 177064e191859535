"""Laws of the information entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from amp.statistics.entropy import information_entropy


def features(batch: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))


def entropy_by_formula(feature_BD: Tensor, inverse_temperature: float) -> Tensor:
    """Method section 1 word by word, in float64; 0 * log 0 = 0."""
    unit_BD = feature_BD / feature_BD.pow(2).sum(dim=1, keepdim=True).sqrt()
    weights_BB = torch.exp(inverse_temperature * unit_BD @ unit_BD.T)
    p_BB = weights_BB / weights_BB.sum(dim=1, keepdim=True)
    return -torch.special.xlogy(p_BB, p_BB).sum(dim=1).mean()


@pytest.mark.parametrize("inverse_temperature", [1e-3, 1.0, 15.0, 20.0, 100.0, 1e4])
@pytest.mark.parametrize(("batch", "width"), [(2, 3), (7, 5), (32, 64), (100, 2)])
def test_entropy_lies_between_zero_and_log_batch(batch: int, width: int, inverse_temperature: float) -> None:
    entropy = information_entropy(features(batch, width), inverse_temperature)
    assert entropy.shape == ()
    assert entropy.dtype == torch.float32
    assert -1e-6 <= entropy.item() <= math.log(batch) + 1e-5


@pytest.mark.parametrize("inverse_temperature", [1.0, 15.0, 1000.0])
def test_identical_features_have_the_largest_entropy(inverse_temperature: float) -> None:
    feature_BD = features(1, 16).expand(24, 16)
    assert information_entropy(feature_BD, inverse_temperature).item() == pytest.approx(math.log(24), abs=1e-4)


def test_orthogonal_features_have_the_entropy_of_one_hot_rows() -> None:
    # With the diagonal in the softmax a row is (e^t, 1, ..., 1) / (e^t + B - 1).
    batch = 10
    for inverse_temperature in (1.0, 5.0, 15.0):
        top = math.exp(inverse_temperature) / (math.exp(inverse_temperature) + batch - 1)
        rest = (1 - top) / (batch - 1)
        expected = -top * math.log(top) - (batch - 1) * rest * math.log(rest)
        assert information_entropy(3 * torch.eye(batch), inverse_temperature).item() == pytest.approx(
            expected, rel=1e-5, abs=1e-6
        )
    assert information_entropy(torch.eye(batch), 100.0).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("inverse_temperature", [0.5, 15.0, 20.0, 50.0])
def test_entropy_and_its_gradient_equal_the_formula_in_float64(inverse_temperature: float) -> None:
    fp32_BD, fp64_BD = features(16, 24).requires_grad_(), features(16, 24).double().requires_grad_()
    entropy = information_entropy(fp32_BD, inverse_temperature)
    expected = entropy_by_formula(fp64_BD, inverse_temperature)
    assert entropy.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    entropy.backward()
    expected.backward()
    assert fp32_BD.grad is not None
    assert fp64_BD.grad is not None
    torch.testing.assert_close(fp32_BD.grad.double(), fp64_BD.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("inverse_temperature", [52.0, 100.0, 1000.0])
def test_entropy_and_gradient_are_finite_where_the_naive_ones_are_not(inverse_temperature: float) -> None:
    # Opposite features: the least probability is about e^(-2 t), below the least fp32 number from t = 52 on.
    direction_D = features(1, 8)
    feature_BD = torch.cat([direction_D, -direction_D, direction_D, -direction_D]).requires_grad_()
    unit_BD = F.normalize(feature_BD, dim=1)
    p_BB = (inverse_temperature * unit_BD @ unit_BD.T).softmax(dim=1)
    assert (p_BB * p_BB.log()).sum().isnan(), "the naive formula was expected to fail here"

    entropy = information_entropy(feature_BD, inverse_temperature)
    entropy.backward()
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-4)
    assert feature_BD.grad is not None
    assert feature_BD.grad.isfinite().all()


def test_entropy_ignores_the_scale_of_each_feature() -> None:
    feature_BD = features(12, 6)
    scale_B1 = torch.rand(12, 1, generator=torch.Generator().manual_seed(1)) * 1e3 + 1e-3
    torch.testing.assert_close(
        information_entropy(feature_BD * scale_B1, 15.0), information_entropy(feature_BD, 15.0), rtol=1e-5, atol=1e-6
    )


def test_entropy_ignores_the_order_of_the_batch() -> None:
    feature_BD = features(12, 6)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        information_entropy(feature_BD[order], 15.0), information_entropy(feature_BD, 15.0), rtol=1e-5, atol=1e-6
    )


def test_entropy_depends_on_the_batch_as_a_whole() -> None:
    # The entropy of a batch is not the mean over its halves: B is a setting of the criterion.
    feature_BD = features(16, 6)
    halves = (information_entropy(feature_BD[:8], 2.0) + information_entropy(feature_BD[8:], 2.0)) / 2
    assert information_entropy(feature_BD, 2.0).item() > halves.item() + 0.3


def test_bf16_features_are_computed_in_fp32() -> None:
    feature_BD = features(32, 64).bfloat16()
    expected = information_entropy(feature_BD.float(), 15.0)
    assert torch.equal(information_entropy(feature_BD, 15.0), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(information_entropy(feature_BD, 15.0), expected)
        assert torch.equal(information_entropy(feature_BD.float(), 15.0), expected)
