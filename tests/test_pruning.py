"""Laws of the pruning: last block to first, search, slice, go on."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amp.config import DataSettings, ModelSettings, SearchSettings
from amp.criteria import information_entropy
from amp.data import Batches, list_images
from amp.distributed import World
from amp.errors import UserError
from amp.pruning import EntropyMeter, Pruned, prune, prune_by_search, prune_to_widths, top_neurons
from amp.scoring import score_entropy
from amp.towers import Tower, build_tower

WORLD = World(0, 1, torch.device("cpu"))
INCREASE, STEPS = 1e-2, 6


@pytest.fixture
def batches(tower: Tower, golden_images: Path) -> Callable[[str], list[Tensor]]:
    """The golden batches of a split: 2 of 32 images, in file order."""
    settings = DataSettings(name="imagefolder", root=str(golden_images), batch_size=32, shuffle=False, num_workers=0)

    def of_split(split: Any) -> list[Tensor]:
        return list(Batches(list_images(settings, split), tower.transform, settings, WORLD))

    return of_split


@pytest.fixture
def scores(golden: dict[str, Any]) -> list[Tensor]:
    return [torch.tensor(score) for score in golden["score"]["scores_abs@15.0"]]


@pytest.fixture
def meter(tower: Tower, batches: Callable[[str], list[Tensor]]) -> EntropyMeter:
    return EntropyMeter(tower, batches("val"), 15.0, WORLD)


class ScriptedMeter:
    """Any function of the tower's widths in the place of its entropy; remembers the widths it was asked of."""

    def __init__(self, tower: Tower, entropy: Callable[[list[int]], float]) -> None:
        self.tower, self.entropy = tower, entropy
        self.asked: list[list[int]] = []

    def __call__(self) -> float:
        self.asked.append(self.tower.widths)
        return self.entropy(self.tower.widths)


def search(tower: Tower, scores: Sequence[Tensor], meter: Any, increase: float = INCREASE) -> Pruned:
    return prune_by_search(tower, scores, meter, increase, STEPS)


def zero_dropped(tower: Tower, kept: Sequence[Sequence[int]]) -> None:
    """Zeroes every dropped neuron at the input of its out-projection."""

    def zero(mask_H: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        return lambda _, inputs: (inputs[0] * mask_H,)

    for slot, indices in zip(tower.slots, kept, strict=True):
        mask_H = torch.zeros(slot.hidden_width)
        mask_H[list(indices)] = 1.0
        slot.out_projection.register_forward_pre_hook(zero(mask_H))


def test_golden_search(tower: Tower, golden: dict[str, Any], scores: list[Tensor], meter: EntropyMeter) -> None:
    expected = golden["runs"][0]
    found = search(tower, scores, meter)
    assert [probe[:2] for probe in found.probes] == [tuple(probe[:2]) for probe in expected["probes"]]
    for (*_, entropy), (*_, expected_entropy) in zip(found.probes, expected["probes"], strict=True):
        assert entropy == pytest.approx(expected_entropy, abs=1e-5)
    assert found.dense_entropy == pytest.approx(expected["dense_entropy"], abs=1e-5)
    assert tower.widths == expected["widths"] == [len(kept) for kept in found.kept]
    # The last accepted probe stands for the finished network.
    assert found.final_entropy == pytest.approx(meter(), abs=1e-6)


def test_golden_widths_from_our_own_scores(
    tower: Tower, golden: dict[str, Any], batches: Callable[[str], list[Tensor]], meter: EntropyMeter
) -> None:
    own = score_entropy(tower, batches("train"), 15.0, True, WORLD)
    search(tower, own, meter)
    assert tower.widths == golden["runs"][0]["widths"]


def test_every_accepted_step_adds_at_most_entropy_increase(
    tower: Tower, scores: list[Tensor], meter: EntropyMeter
) -> None:
    found = search(tower, scores, meter)
    # Replay the decisions from the record alone.
    reference, widths = found.dense_entropy, [256] * 5
    for block in reversed(range(5)):
        low, high, accepted = 0, 256, None
        for _, width, entropy in (probe for probe in found.probes if probe[0] == block):
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

    found = search(tower, scores, ScriptedMeter(tower, entropy))
    assert tower.widths == [128] * 5
    assert found.final_entropy == pytest.approx(1.0 + 4.5 * INCREASE)


def test_a_probe_that_lowers_the_entropy_lowers_the_reference(tower: Tower, scores: list[Tensor]) -> None:
    def entropy(widths: list[int]) -> float:
        last_gains = -0.5 if widths[4] < 256 else 0.0
        return 1.0 + last_gains + 0.1 * sum(width < 256 for width in widths[:4])

    # Each other block adds 0.1: within 0.2 of the dense 1.0 it would pass many times, of the reference 0.5 it does not.
    found = search(tower, scores, ScriptedMeter(tower, entropy), increase=0.05)
    assert tower.widths == [256, 256, 256, 256, 4]
    assert found.final_entropy == 0.5


def test_a_block_that_keeps_all_leaves_the_reference(tower: Tower, scores: list[Tensor]) -> None:
    def entropy(widths: list[int]) -> float:
        # Block 3 cannot be pruned; the blocks after it may add 0.6 of the increase each.
        return (100.0 if widths[3] < 256 else 0.0) + 0.6 * INCREASE * sum(width < 256 for width in widths)

    found = search(tower, scores, ScriptedMeter(tower, entropy))
    assert tower.widths == [4, 4, 4, 256, 4]
    assert found.kept[3] == list(range(256))
    assert found.final_entropy == pytest.approx(4 * 0.6 * INCREASE)


def test_no_block_can_be_pruned(tower: Tower, scores: list[Tensor]) -> None:
    values = {key: value.clone() for key, value in tower.model.state_dict().items()}
    found = search(tower, scores, ScriptedMeter(tower, lambda widths: float(widths != [256] * 5)))
    assert tower.widths == [256] * 5
    assert found.final_entropy == found.dense_entropy == 0.0
    assert len(found.probes) == 30
    assert all(torch.equal(value, values[key]) for key, value in tower.model.state_dict().items())


def test_a_probe_at_the_budget_is_accepted(tower: Tower, scores: list[Tensor]) -> None:
    found = search(tower, scores, ScriptedMeter(tower, lambda widths: 0.25 * (widths[4] < 256)), increase=0.25)
    assert tower.widths[4] == 4
    assert found.final_entropy == 0.25


def test_each_probe_narrows_one_block_of_the_network_so_far(tower: Tower, scores: list[Tensor]) -> None:
    meter = ScriptedMeter(tower, lambda widths: sum(0.01 * 256 / width for width in widths))
    found = search(tower, scores, meter, increase=0.05)
    dense, *asked = meter.asked
    assert dense == [256] * 5
    assert [probe[0] for probe in found.probes] == sorted((probe[0] for probe in found.probes), reverse=True)
    for (block, width, entropy), widths in zip(found.probes, asked, strict=True):
        assert widths == [*[256] * block, width, *tower.widths[block + 1 :]]
        assert entropy == meter.entropy(widths)


def test_an_exception_of_the_meter_leaves_the_searched_block_whole(tower: Tower, scores: list[Tensor]) -> None:
    def entropy(widths: list[int]) -> float:
        if widths[4] == 64:
            raise KeyboardInterrupt
        return 0.0

    values = {key: value.clone() for key, value in tower.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        search(tower, scores, ScriptedMeter(tower, entropy))
    assert tower.widths == [256] * 5
    assert all(torch.equal(value, values[key]) for key, value in tower.model.state_dict().items())


def test_the_pruned_tower_equals_the_dense_one_with_its_dropped_neurons_zeroed(
    tower: Tower,
    golden_model: ModelSettings,
    scores: list[Tensor],
    meter: EntropyMeter,
    batches: Callable[[str], list[Tensor]],
) -> None:
    found = search(tower, scores, meter)
    masked = build_tower(golden_model)
    zero_dropped(masked, found.kept)
    for images_BCHW in batches("val"):
        torch.testing.assert_close(tower.feature(images_BCHW), masked.feature(images_BCHW), rtol=0, atol=2e-5)


def test_the_pruned_tower_has_sliced_linears_of_the_dense_weights(
    tower: Tower, golden_model: ModelSettings, scores: list[Tensor], meter: EntropyMeter
) -> None:
    dense = build_tower(golden_model)
    found = search(tower, scores, meter)
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


def test_the_search_costs_one_pass_for_the_dense_network_and_one_a_probe(
    tower: Tower, scores: list[Tensor], meter: EntropyMeter
) -> None:
    calls: list[int] = []
    for block in tower.blocks.values():
        block.register_forward_hook(lambda *_: calls.append(1))
    found = search(tower, scores, meter)
    assert len(found.probes) == 30
    assert meter.cost == {"block_forwards": 31 * 2 * 5, "images": 31 * 64}
    assert len(calls) == 31 * 2 * 5


def test_the_meter_is_the_mean_entropy_of_its_batches(
    tower: Tower, meter: EntropyMeter, batches: Callable[[str], list[Tensor]], golden: dict[str, Any]
) -> None:
    each = [information_entropy(tower.feature(images_BCHW), 15.0).item() for images_BCHW in batches("val")]
    assert meter() == pytest.approx(math.fsum(each) / 2, abs=1e-6)
    assert meter() == pytest.approx(golden["runs"][0]["dense_entropy"], abs=1e-5)
    assert meter() == meter(), "the same batches in the same order give the same bits"
    assert each[0] != each[1]


def test_the_meter_counts_its_cost(tower: Tower, meter: EntropyMeter) -> None:
    assert meter.cost == {"block_forwards": 0, "images": 0}
    for passes in (1, 2, 3):
        meter()
        # Two batches of 32 through five blocks.
        assert meter.cost == {"block_forwards": passes * 10, "images": passes * 64}


def test_the_meter_sees_the_tower_as_it_is(tower: Tower, meter: EntropyMeter, scores: list[Tensor]) -> None:
    dense = meter()
    with tower.slots[2].narrowed(top_neurons(scores[2], 8)):
        assert meter() > dense
    assert meter() == dense


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_top_neurons_are_the_highest_scores_in_their_own_order(width: int) -> None:
    score_H = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.8, 0.2, 0.6, 0.5])
    best = sorted(range(8), key=lambda neuron: -score_H[neuron].item())[:width]
    assert top_neurons(score_H, width).tolist() == sorted(best)


def test_top_neurons_of_equal_scores_are_the_first() -> None:
    assert top_neurons(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]
    # Long enough that an unstable sort would mix equals up.
    score_H = (torch.arange(4096) % 2).float()
    assert top_neurons(score_H, 3000).tolist() == sorted([*range(1, 4096, 2), *range(0, 1904, 2)])


def test_top_neurons_are_nested() -> None:
    score_H = torch.rand(256, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    for width in range(1, 256):
        assert set(top_neurons(score_H, width).tolist()) < set(top_neurons(score_H, width + 1).tolist())


def test_signed_scores_are_ranked_highest_first() -> None:
    assert top_neurons(torch.tensor([-3.0, 0.0, 2.0, -1.0]), 2).tolist() == [1, 2]


def test_pruning_to_widths_equals_the_search_that_found_them(
    tower: Tower, golden_model: ModelSettings, scores: list[Tensor], batches: Callable[[str], list[Tensor]]
) -> None:
    searched = build_tower(golden_model)
    by_search = search(searched, scores, EntropyMeter(searched, batches("val"), 15.0, WORLD))
    meter = EntropyMeter(tower, batches("val"), 15.0, WORLD)
    found = prune_to_widths(tower, scores, searched.widths, meter)
    assert tower.widths == searched.widths
    assert found.kept == by_search.kept
    assert found.probes == []
    assert found.dense_entropy == by_search.dense_entropy
    assert found.final_entropy == pytest.approx(by_search.final_entropy, abs=1e-6)
    assert meter.cost == {"block_forwards": 2 * 2 * 5, "images": 2 * 64}
    same = zip(tower.model.state_dict().values(), searched.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_settings_choose_between_search_and_widths(
    tower: Tower, golden_model: ModelSettings, scores: list[Tensor]
) -> None:
    def entropy(widths: list[int]) -> float:
        return sum(0.01 * 256 / width for width in widths)

    meter: Any = ScriptedMeter(tower, entropy)
    found = prune(tower, scores, meter, SearchSettings(entropy_increase=0.05, search_steps=3))
    assert len(found.probes) == 15
    assert min(tower.widths) >= 256 // 8
    assert found.entropies == {
        "dense_entropy": entropy([256] * 5),
        "final_entropy": entropy(tower.widths),
        "probes": found.probes,
    }
    other = build_tower(golden_model)
    meter = ScriptedMeter(other, entropy)
    found = prune(other, scores, meter, SearchSettings(widths=(1, 2, 3, 4, 256)))
    assert other.widths == [1, 2, 3, 4, 256]
    assert found.entropies == {
        "dense_entropy": entropy([256] * 5),
        "final_entropy": entropy(other.widths),
        "probes": [],
    }


@pytest.mark.parametrize(
    ("widths", "says"),
    [
        ([64, 64, 64, 64], "prune.widths: 4 widths, the tower has 5 blocks"),
        ([64, 64, 64, 64, 64, 64], "prune.widths: 6 widths, the tower has 5 blocks"),
        ([], "prune.widths: 0 widths, the tower has 5 blocks"),
        ([64, 64, 257, 64, 64], "prune.widths: 257 at block 2, which has 256 neurons"),
    ],
)
def test_widths_that_do_not_fit_are_refused_before_anything_is_sliced(
    tower: Tower, scores: list[Tensor], widths: list[int], says: str
) -> None:
    meter: Any = ScriptedMeter(tower, lambda widths: 0.0)
    with pytest.raises(UserError) as caught:
        prune_to_widths(tower, scores, widths, meter)
    assert str(caught.value) == says
    assert tower.widths == [256] * 5
    assert meter.asked == []


@pytest.mark.parametrize("width", [1, 256])
def test_the_least_and_the_most_width_work(tower: Tower, scores: list[Tensor], meter: EntropyMeter, width: int) -> None:
    found = prune_to_widths(tower, scores, [width] * 5, meter)
    assert tower.widths == [width] * 5
    assert math.isfinite(found.final_entropy)
    assert (found.final_entropy == found.dense_entropy) == (width == 256)


def test_an_entropy_that_is_not_a_number_is_no_silent_success(tower: Tower, scores: list[Tensor]) -> None:
    """Weights that overflow give NaN everywhere; keeping every neuron would look like a cautious search."""
    tower.slots[0].out_projection.bias.fill_(torch.nan)
    meter = EntropyMeter(tower, [torch.zeros(4, 3, 32, 32)], 15.0, WORLD)
    with pytest.raises(RuntimeError):
        search(tower, scores, meter)


def test_the_meter_casts_images_to_the_towers_precision(golden_model: ModelSettings) -> None:
    tower = build_tower(golden_model.model_copy(update={"precision": "bf16"}))
    images_BCHW = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fp32, bf16 = (EntropyMeter(tower, [images], 15.0, WORLD)() for images in (images_BCHW, images_BCHW.bfloat16()))
    assert fp32 == bf16


def test_one_process_decides_for_all(tower: Tower) -> None:
    """Every process takes the main one's value, so that rounding cannot part their ways."""
    world: Any = SimpleNamespace(device=torch.device("cpu"), gather=lambda rows: rows, broadcast=lambda value: 0.125)
    assert EntropyMeter(tower, [torch.zeros(4, 3, 32, 32)], 15.0, world)() == 0.125
