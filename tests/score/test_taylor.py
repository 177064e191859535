"""Laws of the Taylor scores.

B images, T tokens, D width, H hidden width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import SwiGLUPacked
from torch import Tensor, nn
from toy_blocks import D, Toy, toy_input

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.score.scoring import score_entropy, score_random
from amp.score.taylor import TaylorScorer
from amp.settings.data import DataSettings
from amp.statistics.entropy import information_entropy
from amp.towers import Tower
from amp.towers.find_slots import find_slots
from amp.towers.slots import MlpSlot


def random_batches(num_batches: int = 2, batch_size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(num_batches, batch_size, 3, 32, 32, generator=generator))


def train_batches(tower: Tower, root: Path) -> Batches:
    settings = DataSettings(name="imagefolder", root=str(root), batch_size=32, shuffle=False, num_workers=0)
    return Batches(list_images(settings, "train"), tower.transform, settings)


@contextmanager
def masks(slots: tuple[MlpSlot, ...], batch_size: int) -> Iterator[list[Tensor]]:
    """Multiplies every out-projection's input by ones (B, 1, H), one factor an image and neuron."""
    ones = [torch.ones(batch_size, 1, slot.hidden_width, requires_grad=True) for slot in slots]
    handles = [
        slot.out_projection.register_forward_pre_hook(lambda _, inputs, one=one: (inputs[0] * one,))
        for slot, one in zip(slots, ones, strict=True)
    ]
    yield ones
    for handle in handles:
        handle.remove()


def scores_by_masks(tower: Tower, batches: list[Tensor], inverse_temperature: float, absolute: bool) -> list[Tensor]:
    """dE/dm at m = 1 is the sum over tokens of a * dE/da: scores with neither a nor dE/da in sight."""
    sums = [torch.zeros(width) for width in tower.widths]
    for images_BCHW in batches:
        with masks(tower.slots, len(images_BCHW)) as ones:
            information_entropy(tower.feature(images_BCHW), inverse_temperature).backward()
        for total_H, one_B1H in zip(sums, ones, strict=True):
            gradient_BH = one_B1H.grad.squeeze(1)
            total_H += (gradient_BH.abs() if absolute else gradient_BH).mean(dim=0)
    return [total_H / len(batches) for total_H in sums]


@pytest.mark.parametrize("absolute", [True, False])
def test_scores_equal_the_gradient_of_a_mask_of_ones(tower: Tower, absolute: bool) -> None:
    batches = random_batches()
    expected = scores_by_masks(tower, batches, 15.0, absolute)
    found = score_entropy(tower, batches, 15.0, absolute)
    for found_H, expected_H in zip(found, expected, strict=True):
        assert found_H.shape == (256,)
        assert found_H.dtype == torch.float32
        torch.testing.assert_close(found_H, expected_H, rtol=1e-4, atol=1e-5 * expected_H.abs().max().item())


def test_absolute_scores_bound_signed_ones_and_differ(tower: Tower) -> None:
    batches = random_batches()
    for absolute_H, signed_H in zip(
        score_entropy(tower, batches, 15.0, True), score_entropy(tower, batches, 15.0, False), strict=True
    ):
        assert (absolute_H >= 0).all()
        assert (signed_H < 0).any()
        # |mean| <= mean of |.|; the absolute value is taken per image, so they are not merely each other's sign.
        assert (signed_H.abs() <= absolute_H + 1e-6 * absolute_H.max()).all()
        assert (signed_H.abs() < 0.9 * absolute_H).any()


def test_golden_scores(tower: Tower, golden: dict[str, Any], golden_images: Path) -> None:
    found = score_entropy(tower, train_batches(tower, golden_images), 15.0, True)
    for found_H, expected in zip(found, golden["score"]["scores_abs@15.0"], strict=True):
        expected_H = torch.tensor(expected)
        assert (found_H - expected_H).abs().max() <= 1e-4 * expected_H.max()


def test_scores_are_the_mean_over_batches(tower: Tower) -> None:
    batches = random_batches(3)
    apart = [score_entropy(tower, [batch], 15.0, True) for batch in batches]
    for block, together_H in enumerate(score_entropy(tower, batches, 15.0, True)):
        mean_H = torch.stack([scores[block] for scores in apart]).mean(dim=0)
        torch.testing.assert_close(together_H, mean_H, rtol=1e-5, atol=1e-6 * mean_H.max().item())


def test_one_backward_pass_a_batch_scores_all_blocks(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"backward": 0, "forward": 0}
    backward = Tensor.backward

    def counted(self: Tensor, *args: Any, **kwargs: Any) -> None:
        calls["backward"] += 1
        backward(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "backward", counted)
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: pytest.fail("a second way to a gradient"))
    handle = tower.visual.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
    scores = score_entropy(tower, random_batches(3), 15.0, True)
    handle.remove()
    assert calls == {"backward": 3, "forward": 3}
    assert all(score_H.any() for score_H in scores)


def test_scoring_leaves_the_tower_as_it_was(tower: Tower) -> None:
    values = {key: value.clone() for key, value in tower.model.state_dict().items()}
    score_entropy(tower, random_batches(), 15.0, True)
    assert all(parameter.grad is None for parameter in tower.model.parameters())
    assert not any(parameter.requires_grad for parameter in tower.model.parameters())
    assert all(torch.equal(value, values[key]) for key, value in tower.model.state_dict().items())
    assert not tower.feature(random_batches()[0]).requires_grad, "a hook still starts a graph"
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tower.model.modules())


def test_the_graph_starts_at_the_first_activation(tower: Tower) -> None:
    seen: list[bool] = []
    handle = tower.slots[0].out_projection.register_forward_pre_hook(lambda _, i: seen.append(i[0].requires_grad))
    with TaylorScorer(tower.slots):
        tower.feature(random_batches()[0])
    handle.remove()
    assert seen == [False], "the input of the first out-projection should have had no graph behind it"


@pytest.mark.parametrize("failing", ["a batch", "the tower"])
def test_hooks_are_gone_after_an_exception(tower: Tower, failing: str) -> None:
    def batches() -> Iterator[Tensor]:
        yield random_batches()[0]
        raise OSError("disk gone")

    images: Any = batches() if failing == "a batch" else [torch.zeros(2, 3, 7, 7)]
    kinds = OSError if failing == "a batch" else (RuntimeError, AssertionError)
    with pytest.raises(kinds):
        score_entropy(tower, images, 15.0, True)
    assert not any(slot.out_projection._forward_pre_hooks for slot in tower.slots)
    assert not tower.feature(random_batches()[0]).requires_grad


def test_hooks_live_inside_the_with_only() -> None:
    toy = Toy(0, 1, 2)
    scorer = TaylorScorer(toy.slots)
    assert not toy(toy_input()).requires_grad
    with scorer:
        assert all(len(slot.out_projection._forward_pre_hooks) == 1 for slot in toy.slots)
        assert toy(toy_input()).requires_grad
    assert not any(slot.out_projection._forward_pre_hooks for slot in toy.slots)


def test_scoring_does_not_change_the_features(tower: Tower) -> None:
    images_BCHW = random_batches()[0]
    expected_BD = tower.feature(images_BCHW)
    with TaylorScorer(tower.slots):
        # Not bit for bit: torch's attention takes another kernel where a graph is recorded.
        torch.testing.assert_close(tower.feature(images_BCHW), expected_BD, rtol=0, atol=1e-5)


def test_gated_mlps_are_scored_at_the_out_projection() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(SwiGLUPacked(D, 2 * 12)).requires_grad_(False)
    slots = find_slots({"blocks.0": block})
    with masks(slots, 4) as ones:
        block(toy_input()).square().mean().backward()
    with TaylorScorer(slots) as scorer:
        scorer.step(block(toy_input()).square().mean(), 4)
    torch.testing.assert_close(scorer.scores()[0], ones[0].grad.abs().mean(dim=(0, 1)))


def test_bf16_towers_are_scored_in_fp32() -> None:
    """Products, their sum over tokens and the sum over batches: bf16 would stop growing after 256 equal terms."""
    toy = Toy(0, 1, 2).bfloat16()
    slots = toy.slots
    taken: list[Tensor] = []
    with TaylorScorer(slots) as scorer:
        # Runs after the scorer's own hook, so it sees the activation that the gradient is taken of.
        handle = slots[1].out_projection.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
        for step in range(300):
            loss = toy(toy_input().bfloat16()).float().square().mean()
            if step == 0:
                taken[0].retain_grad()
                handle.remove()
            scorer.step(loss, 4)
    expected_H = (taken[0].detach().float() * taken[0].grad.float()).sum(dim=1).abs().mean(dim=0)
    assert taken[0].dtype == torch.bfloat16
    found_H = scorer.scores()[1]
    assert found_H.dtype == torch.float32
    torch.testing.assert_close(found_H, expected_H, rtol=1e-4, atol=1e-5 * expected_H.max().item())


def test_random_scores_are_a_function_of_the_seed() -> None:
    slots = Toy(0).slots
    state = torch.get_rng_state()
    first, again, other = score_random(slots, 0), score_random(slots, 0), score_random(slots, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(score_H) for score_H in first] == [16, 16, 16]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])
