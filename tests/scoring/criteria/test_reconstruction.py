"""The reconstruction scores: greedy picks of least squares, in the metric of the feature.

B images, N tokens, D width, H hidden neurons.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import refusal
from helpers.gates import random_batches
from helpers.mlp_layouts import ALL, D, H, make_block, some_neurons
from helpers.toy_blocks import Toy, toy_input
from torch import Tensor

from amp.pruning.refit.ridge import Ridge
from amp.scoring.criteria._picks import forward_gains as gains_of_all
from amp.scoring.criteria._sensitivity import INDIRECT, MOST, SensitivityCollector
from amp.scoring.criteria.reconstruction import score as reconstruction_scores
from amp.scoring.criterion import Scoring, score
from amp.settings.score import ScoreSettings
from amp.statistics.moments import MomentCollector
from amp.towers import Tower

RECONSTRUCTION = ScoreSettings(criterion="reconstruction")


def _problem(num_neurons: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """A covariance, a weight (4, H) and a sensitivity (4, 4), all fp64."""
    generator = torch.Generator().manual_seed(0)
    a_NH = torch.randn(40, num_neurons, generator=generator).double()
    g_ND = torch.randn(7, 4, generator=generator).double()
    return torch.cov(a_NH.T), torch.randn(4, num_neurons, generator=generator).double(), g_ND.T @ g_ND


def forward_gains(covariance_HH: Tensor, weight_DH: Tensor, sensitivity_DD: Tensor, *damping: float) -> Tensor:
    """Of one MLP, by pools as small as the matrices here ask for."""
    return gains_of_all(covariance_HH[None], weight_DH[None], sensitivity_DD[None], *damping, at_once=5, pool=64)[0]


def _loss(covariance_HH: Tensor, weight_DH: Tensor, sensitivity_DD: Tensor, kept: list[int], damping: float) -> float:
    """What least squares on the kept neurons leaves of the output, in the metric of the sensitivity."""
    damped_HH = covariance_HH + damping * covariance_HH.diagonal().mean() * torch.eye(len(covariance_HH))
    left_HH = damped_HH
    if kept:
        left_HH = damped_HH - damped_HH[:, kept] @ torch.linalg.solve(damped_HH[kept][:, kept], damped_HH[kept])
    return float((sensitivity_DD @ weight_DH @ left_HH @ weight_DH.T).trace())


@pytest.mark.parametrize("damping", [0.0, 1e-2])
def test_each_pick_lowers_the_loss_the_most_and_scores_by_how_much(damping: float) -> None:
    problem = _problem()
    score_H = forward_gains(*problem, damping)
    kept: list[int] = []
    bound = float("inf")
    for pick in score_H.argsort(descending=True).tolist():
        losses = {j: _loss(*problem, [*kept, j], damping) for j in range(len(score_H)) if j not in kept}
        assert losses[pick] <= min(losses.values()) + 1e-9
        bound = min(bound, _loss(*problem, kept, damping) - losses[pick])
        assert score_H[pick].item() == pytest.approx(bound, rel=1e-4, abs=1e-7)
        kept.append(pick)


def test_of_two_alike_one_is_kept() -> None:
    covariance_HH, weight_DH, sensitivity_DD = _problem()
    twins = [*range(9), 4]
    score_H = forward_gains(covariance_HH[twins][:, twins], 10 * weight_DH[:, twins], sensitivity_DD)
    assert score_H.argsort(descending=True)[-1] == 9
    assert score_H[9] < 1e-2 * score_H[4]


@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_of_those_that_say_the_same_the_first_is_picked_however_sums_are_rounded(damping: float) -> None:
    """Three neurons twice, in other places, one of them as a scaled copy, and what another processor's fp32 adds."""
    covariance_HH, weight_DH, sensitivity_DD = _problem(24)
    copies = torch.tensor([*range(24), 4, 4, 7, 11])
    order = torch.randperm(28, generator=torch.Generator().manual_seed(1))
    copies = copies[order]
    scale_H = torch.where(order == 27, -1.0, 1.0).double()
    covariance_HH = covariance_HH[copies][:, copies] * torch.outer(scale_H, scale_H)
    spread_HH = covariance_HH.diagonal().sqrt().outer(covariance_HH.diagonal().sqrt())
    found = []
    for seed in range(20):
        noise_HH = torch.randn(28, 28, generator=torch.Generator().manual_seed(seed)).double() * 1e-7 * spread_HH
        moved_HH = covariance_HH + noise_HH + noise_HH.T
        score_H = forward_gains(moved_HH, weight_DH[:, copies] * scale_H, sensitivity_DD, damping)
        found.append(score_H.argsort(descending=True, stable=True).tolist())
        for neuron in (4, 7, 11):
            same = (copies == neuron).nonzero().flatten().tolist()
            assert min(same, key=found[-1].index) == min(same)
    # Without damping nothing is left of the copies but rounding, which is in no order.
    assert len({tuple(picks if damping else picks[:20]) for picks in found}) == 1


def test_scores_of_other_sums_pick_the_same_neurons() -> None:
    block, slot = make_block("timm-mlp")
    with torch.no_grad():
        for module in slot.in_projections:
            module.weight[[5, 9]] = module.weight[2].clone()
            module.bias[[5, 9]] = module.bias[2].clone()
        slot.out_projection.weight[:, [5, 9]] = slot.out_projection.weight[:, [2]].clone()
    x_BTD = torch.randn(50, 16, D, generator=torch.Generator().manual_seed(0))
    weight_DH, found = slot.out_projection.weight.detach().double(), []
    for seed, parts in ((0, 1), (1, 5), (2, 25)):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), MomentCollector([slot]) as collector:
            for part_BTD in x_BTD[order].chunk(parts):
                block.mlp(part_BTD)
        score_H = forward_gains(collector.of(0).covariance_HH, weight_DH, torch.eye(D).double())
        found.append(score_H.argsort(descending=True, stable=True).tolist())
    assert found[0] == found[1] == found[2]
    assert found[0].index(2) < found[0].index(5) < found[0].index(9)


def test_what_moves_no_feature_scores_nothing() -> None:
    _, weight_DH, sensitivity_DD = _problem()
    blind_DD = torch.zeros_like(sensitivity_DD)
    blind_DD[0, 0] = 1.0
    uncorrelated_HH = torch.eye(9).double()
    weight_DH[0, 3] = 0.0
    assert forward_gains(uncorrelated_HH, weight_DH, blind_DD).argmin() == 3
    assert forward_gains(uncorrelated_HH, weight_DH, blind_DD)[3] < 1e-12


def test_what_never_varies_or_follows_from_others_scores_nothing() -> None:
    covariance_HH, weight_DH, sensitivity_DD = _problem()
    assert not forward_gains(covariance_HH * 0 - 1e-12 * torch.eye(9), weight_DH, sensitivity_DD).any()
    covariance_HH[2], covariance_HH[:, 2] = 0.0, 0.0
    followers = [*range(9), 0, 1, 8]
    score_H = forward_gains(covariance_HH[followers][:, followers], weight_DH[:, followers], sensitivity_DD, 0.0)
    assert score_H[2] == 0
    assert (score_H > 0).sum() <= 8 + 3
    assert (score_H > 1e-6 * score_H.max()).sum() == 8


@pytest.mark.parametrize("name", ALL)
def test_sensitivities_are_sums_of_the_outputs_gradients(name: str) -> None:
    block, slot = make_block(name)
    block.requires_grad_(False)
    x_BTD = torch.randn(5, 16, D, generator=torch.Generator().manual_seed(0))
    outputs: list[Tensor] = []
    with SensitivityCollector([slot]) as collector:
        handle = slot.out_projection.register_forward_hook(lambda _, inputs, output: outputs.append(output))
        loss = block(x_BTD).square().sum()
        (expected_BTD,) = torch.autograd.grad(loss, outputs[0], retain_graph=True)
        collector.sums[0].zero_()
        collector.sums[-1] += 5
        loss.backward()
        handle.remove()
    g_ND = expected_BTD.flatten(0, 1).double()
    torch.testing.assert_close(collector.sensitivities()[0][0], g_ND.T @ g_ND / 5, rtol=1e-4, atol=1e-6)
    assert not slot.out_projection._backward_pre_hooks
    assert not slot.out_projection._forward_pre_hooks


def test_the_first_neurons_by_reconstruction_repair_more_than_others() -> None:
    """Ridge on as many neurons, of one block of tokens that enter it: the greedy ones leave least."""
    block, slot = make_block("timm-mlp")
    x_BTD = torch.randn(50, 16, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), MomentCollector([slot]) as collector:
        block.mlp(x_BTD)
    moments = collector.of(0)
    weight_DH = slot.out_projection.weight.detach().double()
    score_H = forward_gains(moments.covariance_HH, weight_DH, torch.eye(D).double())
    orders = score_H.argsort(descending=True), some_neurons(H)
    greedy, other = (Ridge(slot, order_H, moments, 1e-3).errors(7)["with"] for order_H in orders)
    assert greedy < 0.9 * other


@pytest.mark.slow
def test_scores_do_not_depend_on_how_the_work_is_divided(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [torch.cat(random_batches(2, 6)), torch.cat(random_batches(2, 6)).flip(0)]

    whole = reconstruction_scores(Scoring(tower, batches, RECONSTRUCTION))
    assert [(score_H.shape, score_H.dtype) for score_H in whole] == [((256,), torch.float32)] * 5
    in_parts = reconstruction_scores(Scoring(tower, batches, RECONSTRUCTION.model_copy(update={"micro_batch": 5})))
    with monkeypatch.context() as patch:
        patch.setattr("amp.statistics.moments.GIGABYTES", 0.0)
        in_passes = reconstruction_scores(Scoring(tower, batches, RECONSTRUCTION))
    for other in (in_parts, in_passes):
        for other_H, whole_H in zip(other, whole, strict=True):
            torch.testing.assert_close(other_H, whole_H, rtol=2e-2, atol=1e-4 * whole_H.max().item())
    settings = ScoreSettings(criterion="reconstruction", micro_batch=12)
    assert all(map(torch.equal, score(tower, batches, settings), whole))


@pytest.mark.slow
def test_the_scores_of_all_blocks_foretell_the_feature(tower: Tower) -> None:
    """In one unit, |f - f'|^2 of unit features: all neurons of a block gone, but for a constant, costs their sum."""
    batches = random_batches(8, 32)
    scores = reconstruction_scores(Scoring(tower, batches, RECONSTRUCTION))
    for block, slot in enumerate(tower.slots):
        with torch.no_grad(), MomentCollector([slot]) as collector:
            dense = [F.normalize(tower.feature(images), dim=-1) for images in batches]
        mean_D = (slot.out_projection.weight.double() @ collector.of(0).mean_H).float()
        handle = slot.out_projection.register_forward_hook(
            lambda module, inputs, output, mean_D=mean_D: (mean_D + module.bias).expand_as(output)
        )
        with torch.no_grad():
            gone = [F.normalize(tower.feature(images), dim=-1) for images in batches]
        handle.remove()
        moved = torch.cat([(a - b).square().sum(1) for a, b in zip(dense, gone, strict=True)]).mean().item()
        assert 1 / 3 < scores[block].sum().item() / moved < 3


def test_too_few_tokens_are_refused(tower: Tower) -> None:
    toy = Toy(0, 1, 2)
    few = toy_input()[:1, :1]
    toy_tower = replace(tower, slots=toy.slots, feature=lambda x_BTD: toy(x_BTD)[:, 0])
    says = refusal(lambda: reconstruction_scores(Scoring(toy_tower, [few], RECONSTRUCTION)))
    assert says.startswith("data.num_samples: ")


def test_tokens_that_the_feature_reads_count_as_many() -> None:
    _, slot = make_block("timm-mlp")
    a_BTH = torch.randn(6, 5, slot.hidden_width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), MomentCollector([slot], read=(0,)) as collector:
        for part in a_BTH.chunk(2):
            slot.out_projection(part)
    repeated_NH = torch.cat([a_BTH.flatten(0, 1), *[a_BTH[:, 0]] * 3]).double()
    moments = collector.of(0, 4.0)
    assert moments.num_tokens == 30
    torch.testing.assert_close(moments.mean_H, repeated_NH.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.covariance_HH, torch.cov(repeated_NH.T, correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "weight"), [(0.1, 1.0), (8.0, 64 / INDIRECT), (1e3, MOST)])
def test_a_token_that_the_feature_reads_counts_by_its_gradients(scale: float, weight: float) -> None:
    """Two of six tokens, whose gradients are `scale` times those of the others; in a second block, of these alone."""
    found_DD, found = _sensed([scale, 1.0], [1.0, 0.0], (0, 1))
    assert found == pytest.approx([weight, MOST])
    assert found_DD == pytest.approx([2 * scale**2 + 4, 2])
    assert _sensed([scale, 1.0], [1.0, 0.0], ()) == (pytest.approx(found_DD), [1.0, 1.0])


def _sensed(of_two: list[float], of_others: list[float], read: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """An entry of G of two blocks with such gradients at two of six tokens and at the others; and the weights."""
    slots = [make_block("timm-mlp")[1] for _ in of_two]
    with SensitivityCollector(slots, read) as collector:
        for slot, two, others in zip(slots, of_two, of_others, strict=True):
            a_BTH = torch.randn(4, 6, slot.hidden_width, generator=torch.Generator().manual_seed(0))
            gradient_BTD = torch.full((4, 6, slot.out_projection.out_features), others)
            gradient_BTD[:, :2] = two
            slot.out_projection(a_BTH).backward(gradient_BTD)
        collector.sums[-1] += 4
    sensitivities, weights = collector.sensitivities()
    return [sensitivity_DD[0, 1].item() for sensitivity_DD in sensitivities], weights
