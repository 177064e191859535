"""What a GPU would refuse, shown without one: fake CUDA tensors have shapes and devices, but no values.

A step that mixes devices raises on them as it would on a GPU. Backward passes and decisions need a real one.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from amp.distillation.losses import distillation_loss
from amp.pruning.measure.replay import Replay
from amp.pruning.measure.store import InputStore
from amp.pruning.refit.mean import MeanShift
from amp.run.world import World, among
from amp.scoring.criteria.cross_entropy import zero_shot_cross_entropy
from amp.scoring.criteria.kl import sampled_surprisal
from amp.statistics.entropy import information_entropy
from amp.statistics.moments import MomentCollector, Moments
from amp.towers import TokenReadout, Tower

CUDA = torch.device("cuda", 0)


@pytest.fixture
def fake(tower: Tower) -> Iterator[Tower]:
    """The golden network on a GPU that is not there."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # Fake tensors have no kernel of it in torch 2.10 and before.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for module in tower.model.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty_like(weight, device=CUDA)))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device=CUDA))
        yield tower
    torch.backends.mha.set_fastpath_enabled(fast)


@pytest.fixture
def images(fake: Tower) -> Tensor:
    return torch.randn(8, 3, fake.image_size, fake.image_size, device=CUDA)


def test_a_mix_of_devices_is_noticed(fake: Tower, images: Tensor) -> None:
    with pytest.raises(RuntimeError, match="device"):
        fake.feature(images.cpu())


def test_criteria(fake: Tower, images: Tensor) -> None:
    feature_BD = fake.feature(images)
    assert information_entropy(feature_BD, 15.0).device == CUDA
    assert sampled_surprisal(feature_BD, feature_BD, 15.0, torch.rand(8, 8, device=CUDA)).device == CUDA
    assert zero_shot_cross_entropy(feature_BD, torch.randn(feature_BD.shape[1], 3, device=CUDA), None).device == CUDA


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.parametrize("place", ["device", "host"])
def test_replay(fake: Tower, place: Any, every: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "allclose", lambda *_, **__: True
    )  # A comparison of values, which fake tensors have none of.
    batches = [torch.randn(8, 3, fake.image_size, fake.image_size) for _ in range(2)]
    replay = Replay(fake, batches, InputStore(place, CUDA), every)
    for block in (4, 4, 3):
        assert [feature_BD.device for feature_BD in replay.map(block, range(2), lambda f: f)] == [CUDA, CUDA]


def test_narrowed_and_compensated(fake: Tower, images: Tensor) -> None:
    slot = fake.slots[1]
    hidden = slot.hidden_width
    with among(World(0, 1, CUDA)), MomentCollector(fake.slots):
        fake.feature(images)
    covariance_HH = torch.randn(hidden, hidden, dtype=torch.float64, device=CUDA)
    moments = Moments(4 * hidden, covariance_HH[0], covariance_HH)
    compensator = MeanShift(slot, torch.arange(hidden), moments)
    compensator._factor_HH = covariance_HH  # Whether it is one, only values can tell.
    with slot.narrowed(torch.arange(0, hidden, 2)):
        compensator.apply(slot, hidden // 2)
        assert slot.out_projection.weight.device == CUDA
        assert fake.feature(images).device == CUDA


def test_distillation_loss(fake: Tower, images: Tensor) -> None:
    tokens_BTD = TokenReadout(fake)(images)
    losses = distillation_loss(tokens_BTD, tokens_BTD, fake.num_prefix_tokens)
    assert [loss.device for loss in losses] == [CUDA] * 3
