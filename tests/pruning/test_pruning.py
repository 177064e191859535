"""Laws of the pruning: last block to first, search, slice, go on."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.scripted_entropy import INCREASE, ScriptedEntropy, networks_of, search
from torch import Tensor, nn

from amp.pruning.measure.held_out import HeldOutEntropy
from amp.scoring.criterion import score
from amp.settings.model import ModelSettings
from amp.settings.score import ScoreSettings
from amp.towers import Tower, build_tower


def zero_dropped(tower: Tower, kept: Sequence[Sequence[int]]) -> None:
    """Zeroes every dropped neuron at the input of its out-projection."""

    def zero(mask_H: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        return lambda _, inputs: (inputs[0] * mask_H,)

    for slot, indices in zip(tower.slots, kept, strict=True):
        mask_H = torch.zeros(slot.hidden_width)
        mask_H[list(indices)] = 1.0
        slot.out_projection.register_forward_pre_hook(zero(mask_H))


def test_golden_search(tower: Tower, golden: dict[str, Any], scores: list[Tensor], held_out: HeldOutEntropy) -> None:
    expected = golden["runs"][0]
    found = search(tower, scores, held_out)
    assert [probe[:2] for probe in found.found.probes] == [tuple(probe[:2]) for probe in expected["probes"]]
    for (*_, entropy), (*_, expected_entropy) in zip(found.found.probes, expected["probes"], strict=True):
        assert entropy == pytest.approx(expected_entropy, abs=1e-5)
    assert found.dense_entropy == pytest.approx(expected["dense_entropy"], abs=1e-5)
    assert tower.widths == expected["widths"] == [len(kept) for kept in found.kept]
    # The last accepted probe stands for the finished network.
    assert found.final_entropy == pytest.approx(held_out(), abs=1e-6)


def test_golden_widths_from_our_own_scores(
    tower: Tower, golden: dict[str, Any], batches: Callable[[str], list[Tensor]], held_out: HeldOutEntropy
) -> None:
    own = score(tower, batches("train"), ScoreSettings())
    search(tower, own, held_out)
    assert tower.widths == golden["runs"][0]["widths"]


def test_every_accepted_step_adds_at_most_entropy_increase(
    tower: Tower, scores: list[Tensor], held_out: HeldOutEntropy
) -> None:
    found = search(tower, scores, held_out)
    # Replay the decisions from the record alone.
    reference, widths = found.dense_entropy, [256] * 5
    for block in reversed(range(5)):
        low, high, accepted = 0, 256, None
        for _, width, entropy in (probe for probe in found.found.probes if probe[0] == block):
            assert width == (low + high) // 2
            if entropy - reference <= INCREASE:
                high, accepted = width, entropy
            else:
                low = width
        widths[block] = high
        if accepted is not None:
            assert accepted - reference <= INCREASE
            reference = accepted
    assert widths == tower.widths
    assert reference == found.final_entropy
    assert found.final_entropy - found.dense_entropy <= 5 * INCREASE


def test_the_accepted_probe_becomes_the_reference(tower: Tower, scores: list[Tensor]) -> None:
    """A block may add the increase to what the blocks before it added: the drift is 5 times the increase here."""
    free = {4: 128, 3: 128, 2: 128, 1: 128, 0: 128}

    def entropy(widths: list[int]) -> float:
        # Each block costs 0.9 of the increase down to half its width, and everything below that.
        cost = 0.0
        for block, width in enumerate(widths):
            cost += (0.0 if width == 256 else 0.9 if width >= free[block] else 100.0) * INCREASE
        return 1.0 + cost

    found = search(tower, scores, ScriptedEntropy(tower, entropy))
    assert tower.widths == [128] * 5
    assert found.final_entropy == pytest.approx(1.0 + 4.5 * INCREASE)


def test_a_probe_that_lowers_the_entropy_lowers_the_reference(tower: Tower, scores: list[Tensor]) -> None:
    def entropy(widths: list[int]) -> float:
        last_gains = -0.5 if widths[4] < 256 else 0.0
        return 1.0 + last_gains + 0.1 * sum(width < 256 for width in widths[:4])

    # Each other block adds 0.1: within 0.2 of the dense 1.0 it would pass many times, of the reference 0.5 it does not.
    found = search(tower, scores, ScriptedEntropy(tower, entropy), increase=0.05)
    assert tower.widths == [256, 256, 256, 256, 4]
    assert found.final_entropy == 0.5


def test_a_block_that_keeps_all_leaves_the_reference(tower: Tower, scores: list[Tensor]) -> None:
    def entropy(widths: list[int]) -> float:
        # Block 3 cannot be pruned; the blocks after it may add 0.6 of the increase each.
        return (100.0 if widths[3] < 256 else 0.0) + 0.6 * INCREASE * sum(width < 256 for width in widths)

    found = search(tower, scores, ScriptedEntropy(tower, entropy))
    assert tower.widths == [4, 4, 4, 256, 4]
    assert found.kept[3] == list(range(256))
    assert found.final_entropy == pytest.approx(4 * 0.6 * INCREASE)


def test_no_block_can_be_pruned(tower: Tower, scores: list[Tensor]) -> None:
    values = {key: value.clone() for key, value in tower.model.state_dict().items()}
    found = search(tower, scores, ScriptedEntropy(tower, lambda widths: float(widths != [256] * 5)))
    assert tower.widths == [256] * 5
    assert found.final_entropy == found.dense_entropy == 0.0
    assert len(found.found.probes) == 30
    assert all(torch.equal(value, values[key]) for key, value in tower.model.state_dict().items())


def test_a_probe_at_the_budget_is_accepted(tower: Tower, scores: list[Tensor]) -> None:
    found = search(tower, scores, ScriptedEntropy(tower, lambda widths: 0.25 * (widths[4] < 256)), increase=0.25)
    assert tower.widths[4] == 4
    assert found.final_entropy == 0.25


def test_each_probe_narrows_one_block_of_the_network_so_far(tower: Tower, scores: list[Tensor]) -> None:
    held_out = ScriptedEntropy(tower, lambda widths: sum(0.01 * 256 / width for width in widths))
    found = search(tower, scores, held_out, increase=0.05)
    dense, *asked = held_out.asked
    assert dense == [256] * 5
    assert [probe[0] for probe in found.found.probes] == sorted(
        (probe[0] for probe in found.found.probes), reverse=True
    )
    for (block, width, entropy), widths in zip(found.found.probes, asked, strict=True):
        assert widths == [*[256] * block, width, *tower.widths[block + 1 :]]
        assert entropy == pytest.approx(held_out.entropy(widths), abs=1e-12)


def test_an_exception_of_a_measurement_leaves_the_searched_block_whole(tower: Tower, scores: list[Tensor]) -> None:
    def entropy(widths: list[int]) -> float:
        if widths[4] == 64:
            raise KeyboardInterrupt
        return 0.0

    values = {key: value.clone() for key, value in tower.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        search(tower, scores, ScriptedEntropy(tower, entropy))
    assert tower.widths == [256] * 5
    assert all(torch.equal(value, values[key]) for key, value in tower.model.state_dict().items())


def test_the_pruned_tower_equals_the_dense_one_with_its_dropped_neurons_zeroed(
    tower: Tower,
    golden_model: ModelSettings,
    scores: list[Tensor],
    held_out: HeldOutEntropy,
    batches: Callable[[str], list[Tensor]],
) -> None:
    found = search(tower, scores, held_out)
    masked = build_tower(golden_model)
    zero_dropped(masked, found.kept)
    for images_BCHW in batches("val"):
        torch.testing.assert_close(tower.feature(images_BCHW), masked.feature(images_BCHW), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_the_pruned_tower_has_sliced_linears_of_the_dense_weights(
    tower: Tower, golden_model: ModelSettings, scores: list[Tensor], held_out: HeldOutEntropy
) -> None:
    dense = build_tower(golden_model)
    found = search(tower, scores, held_out)
    for block, (slot, old) in enumerate(zip(tower.slots, dense.slots, strict=True)):
        kept = found.kept[block]
        assert kept == sorted(set(kept)), "kept neurons stay in the dense order"
        # They are the highest scores.
        assert scores[block][kept].min() >= scores[block][[i for i in range(256) if i not in set(kept)]].max()
        (in_projection,) = slot.in_projections
        assert (in_projection.in_features, in_projection.out_features) == (64, len(kept))
        assert (slot.out_projection.in_features, slot.out_projection.out_features) == (len(kept), 64)
        assert torch.equal(in_projection.weight, old.in_projections[0].weight[kept])
        assert torch.equal(in_projection.bias, old.in_projections[0].bias[kept])
        assert torch.equal(slot.out_projection.weight, old.out_projection.weight[:, kept])
        assert torch.equal(slot.out_projection.bias, old.out_projection.bias)
    # Nothing else moved.
    mlp = ("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight")
    before, after = dense.model.state_dict(), tower.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before if not ("visual" in key and key.endswith(mlp)))
    assert not any(parameter.requires_grad for parameter in tower.model.parameters())


@pytest.mark.slow
def test_the_search_costs_one_pass_for_the_dense_network_and_one_a_probe(
    tower: Tower, scores: list[Tensor], held_out: HeldOutEntropy
) -> None:
    calls: list[int] = []
    for block in tower.blocks.values():
        block.register_forward_hook(lambda *_: calls.append(1))
    found = search(tower, scores, held_out)
    assert len(found.found.probes) == 30
    assert held_out.cost == {"block_forwards": 31 * 2 * 5, "images": 31 * 64}
    assert len(calls) == (31 + 2) * 2 * 5  # and the features of the dense and of the pruned network


def test_an_entropy_that_is_not_a_number_is_no_silent_success(tower: Tower, scores: list[Tensor]) -> None:
    """Weights that overflow give NaN everywhere; keeping every neuron would look like a cautious search."""
    tower.slots[0].out_projection.bias.fill_(torch.nan)
    held_out = HeldOutEntropy(tower, [torch.zeros(4, 3, 32, 32)], 15.0)
    assert refusal(lambda: search(tower, scores, held_out)).startswith("model.precision: ")


def test_scores_that_are_not_one_finite_number_a_neuron_are_refused(tower: Tower, scores: list[Tensor]) -> None:
    damaged = scores[2].clone()
    damaged[7] = torch.nan
    for wrong in (scores[:4], [*scores, scores[0]], [*scores[:4], scores[4][:5]], [*scores[:2], damaged, *scores[3:]]):
        says = refusal(lambda wrong=wrong: networks_of(tower, wrong, None))
        assert says.startswith("scores: ")
