"""Laws of the Taylor scores: one pass for all blocks, and a tower that stays as it was.

B images, T tokens, D width, H hidden width.
"""

from typing import Any

import pytest
import torch
from helpers.gates import masks, random_batches
from helpers.toy_blocks import D, Toy, toy_input
from timm.layers import SwiGLUPacked
from torch import Tensor, nn

from amp.scoring.criterion import score
from amp.scoring.taylor import TaylorScorer
from amp.settings.score import ScoreSettings
from amp.towers import Tower
from amp.towers.mlps.find_slots import find_slots


def test_one_backward_pass_a_batch_scores_all_blocks(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"backward": 0, "forward": 0}
    backward = Tensor.backward

    def counted(self: Tensor, *args: Any, **kwargs: Any) -> None:
        calls["backward"] += 1
        backward(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "backward", counted)
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: pytest.fail("a second way to a gradient"))
    handle = tower.visual.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
    scores = score(tower, random_batches(3), ScoreSettings())
    handle.remove()
    assert calls == {"backward": 3, "forward": 3}
    assert all(score_H.any() for score_H in scores)


def test_scoring_leaves_the_tower_as_it_was(tower: Tower) -> None:
    values = {key: value.clone() for key, value in tower.model.state_dict().items()}
    score(tower, random_batches(), ScoreSettings())
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
    class Gone(list[Tensor]):
        def __getitem__(self, index: Any) -> Any:
            yield from super().__getitem__(index)
            raise OSError("disk gone")

    images = Gone(random_batches()) if failing == "a batch" else [torch.zeros(2, 3, 7, 7)]
    kinds = OSError if failing == "a batch" else (RuntimeError, AssertionError)
    with pytest.raises(kinds):
        score(tower, images, ScoreSettings())
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
