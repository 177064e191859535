"""The refitted out-projection: equal to a float64 reference, never worse than none, and what it refuses.

D embedding width, H hidden width, N tokens.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import refusal
from helpers.mlp_layouts import NORMED, PLAIN, D, H, make_block, some_neurons
from torch import Tensor, nn

from amp.pruning.refit import Compensation, Compensator, NormedCompensator
from amp.pruning.refit.mean import MeanShift, NormedMeanShift
from amp.pruning.refit.ridge import NormedRidge, Ridge
from amp.settings.prune import SearchSettings
from amp.statistics.moments import MomentCollector, Moments, TokenCollector, group_bytes
from amp.statistics.saved_sums import SavedSums, forget_sums
from amp.towers.mlps.slots import MlpSlot

Mlp = tuple[nn.Module, MlpSlot, Tensor, Tensor]


def _make(name: str) -> Mlp:
    """A block's MLP, its slot, an order of its neurons, and tokens (50, 16, D) that go into it."""
    block, slot = make_block(name)
    return block.mlp, slot, some_neurons(H), torch.randn(50, 16, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=PLAIN)
def mlp(request: pytest.FixtureRequest) -> Mlp:
    return _make(request.param)


def _compensator(slot: MlpSlot, order_H: Tensor, moments: Moments, damping: float | None) -> Compensator:
    """Ridge; mean shift where there is no damping."""
    return MeanShift(slot, order_H, moments) if damping is None else Ridge(slot, order_H, moments, damping)


def _normed(slot: MlpSlot, inputs_ND: Tensor, damping: float | None) -> NormedCompensator:
    return NormedMeanShift(slot, inputs_ND) if damping is None else NormedRidge(slot, inputs_ND, damping)


@torch.no_grad()
def _activations(module: nn.Module, slot: MlpSlot, x: Tensor) -> Tensor:
    seen = []
    handle = slot.out_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(x)
    handle.remove()
    return seen[0].flatten(0, -2)


def _moments(module: nn.Module, slot: MlpSlot, x: Tensor) -> Moments:
    with torch.no_grad(), MomentCollector([slot]) as collector:
        for batch in x.chunk(5):
            module(batch)
    return collector.of(0)


def test_moments_are_those_of_the_activations(mlp: Mlp) -> None:
    module, slot, _, x = mlp
    a_NH = _activations(module, slot, x).double()
    moments = _moments(module, slot, x)
    assert moments.num_tokens == 800
    torch.testing.assert_close(moments.mean_H, a_NH.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.covariance_HH, torch.cov(a_NH.T, correction=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [1, 7, 19, 20])
@pytest.mark.parametrize("damping", [1e-6, 1e-2])
def test_ridge_is_the_damped_least_squares_in_float64(mlp: Mlp, width: int, damping: float) -> None:
    module, slot, order_H, x = mlp
    a_NH = _activations(module, slot, x).double()[:, order_H]
    weight_DH = slot.out_projection.weight.detach().double()[:, order_H]
    has_bias = slot.out_projection.bias is not None
    mean_H = a_NH.mean(0) if has_bias else torch.zeros(H).double()
    centred_NH = a_NH - mean_H
    kept_NK, removed_NR = centred_NH[:, :width], centred_NH[:, width:]
    strength = damping * centred_NH.square().mean(0).mean()
    normal_KK = kept_NK.T @ kept_NK / len(a_NH) + strength * torch.eye(width).double()
    c_KR = torch.linalg.solve(normal_KK, kept_NK.T @ removed_NR / len(a_NH))
    expected_DK = weight_DH[:, :width] + weight_DH[:, width:] @ c_KR.T
    expected_D = weight_DH[:, width:] @ (mean_H[width:] - c_KR.T @ mean_H[:width])
    weight_DK, shift_D = Ridge(slot, order_H, _moments(module, slot, x), damping).refit(width)
    torch.testing.assert_close(weight_DK, expected_DK, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shift_D, expected_D, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [1, 7, 19, 20])
@pytest.mark.parametrize("damping", [None, 1e-6, 1e-2])
def test_the_sliced_mlp_errs_as_foretold_and_never_more_than_uncompensated(
    mlp: Mlp, width: int, damping: float | None
) -> None:
    module, slot, order_H, x = mlp
    moments = _moments(module, slot, x)
    if damping is None and slot.out_projection.bias is None:
        assert "has no bias" in refusal(lambda: MeanShift(slot, order_H, moments))
        return
    compensator = _compensator(slot, order_H, moments, damping)
    with torch.no_grad():
        dense = module(x)
        slot.keep(order_H[:width].sort().values)
        plain = (module(x) - dense).square().sum(-1).mean().item()
        compensator.apply(slot, width)
        compensated = (module(x) - dense).square().sum(-1).mean().item()
    centre = 0 if slot.out_projection.bias is None else dense.mean((0, 1))
    whole = (dense - centre).square().sum(-1).mean().item()
    errors = compensator.errors(width)
    assert plain / whole == pytest.approx(errors["without"], rel=1e-3, abs=1e-9)
    assert compensated / whole == pytest.approx(errors["with"], rel=1e-3, abs=1e-9)
    assert compensated <= plain * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("damping", [None, 1e-6, 1e-2])
@pytest.mark.parametrize("name", NORMED)
def test_a_hidden_norm_is_compensated_as_it_is_once_sliced(name: str, damping: float | None) -> None:
    module, slot, order_H, x = _make(name)
    tokens_ND = x.flatten(0, 1)
    compensator = _normed(slot, tokens_ND, damping)
    with torch.no_grad():
        dense = module(x)
        slot.keep(order_H[:9].sort().values)
        a_NK, plain = _activations(module, slot, x).double(), module(x)
        errors = compensator.errors(9)
        compensator.apply(slot, 9)
        compensated = module(x)
    whole = (dense - dense.mean((0, 1))).square().sum()
    assert errors["without"] == pytest.approx(((plain - dense).square().sum() / whole).item(), rel=1e-3)
    assert errors["with"] == pytest.approx(((compensated - dense).square().sum() / whole).item(), rel=1e-3)
    assert errors["with"] <= errors["without"] * (1 + 1e-6)
    if damping is not None:
        # The same least squares by QR, the damping as further rows: half the digits of the normal equations' are lost.
        centred_NK = a_NK - a_NK.mean(0)
        missing_ND = (dense - plain).flatten(0, 1).double()
        missing_ND -= missing_ND.mean(0)
        strength = (damping * centred_NK.square().sum(0).mean()).sqrt()
        rows_NK = torch.cat([centred_NK, strength * torch.eye(9).double()])
        targets_ND = torch.cat([missing_ND, torch.zeros(9, D).double()])
        moved_KD = torch.linalg.lstsq(rows_NK, targets_ND).solution
        least = (missing_ND - centred_NK @ moved_KD).square().sum() / whole
        assert errors["with"] == pytest.approx(least.item(), rel=1e-5)


def test_tokens_are_chosen_evenly() -> None:
    module, slot, _, x = _make("split-layernorm")
    with torch.no_grad(), TokenCollector([slot]) as collector:
        for batch in x.chunk(5):
            module(batch)
    tokens_ND = collector.of(slot)
    assert len(tokens_ND) == 4 * H
    assert torch.equal(tokens_ND[0], x[0, 0])
    assert torch.equal(tokens_ND[-1], x[-1, -1])


def test_blocks_are_prepared_together_where_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    modules, slots, orders, _ = zip(*(_make("timm-mlp") for _ in range(4)), strict=True)
    slots = [replace(slot, name=f"blocks.{number}") for number, slot in enumerate(slots)]
    passes: list[int] = []

    def run(x: Tensor) -> None:
        passes.append(1)
        with torch.no_grad():
            for module in modules:
                module(x)

    batches = _make("timm-mlp")[3].chunk(5)
    all_at_once = Compensation(slots, orders, run, batches, SearchSettings(compensation="ridge"))
    monkeypatch.setattr("amp.statistics.moments.GIGABYTES", group_bytes([H, H]) / 1e9)
    two_at_once = Compensation(slots, orders, run, batches, SearchSettings(compensation="ridge"))
    for block in (3, 2, 1, 0):
        weights = [each.of(block).refit(7)[0] for each in (all_at_once, two_at_once)]  # type: ignore[union-attr]
        assert torch.equal(*weights)
    assert len(passes) == 5 + 10


def test_a_token_that_the_feature_reads_counts_sixteen_times() -> None:
    module, slot, order_H, x = _make("timm-mlp")
    again = torch.cat([x, x[:, :1].expand(-1, 15, -1)], dim=1)

    def refitted(tokens: Tensor, read: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        settings, run = SearchSettings(compensation="ridge"), torch.no_grad()(module)
        own = Compensation([slot], [order_H], run, tokens.chunk(5), settings, read=read)
        return own.of(0).refit(7)  # type: ignore[call-arg, union-attr, return-value]

    for found, expected in zip(refitted(x, (0,)), refitted(again, ()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_linearly_dependent_neurons_need_damping() -> None:
    module, slot, order_H, x = _make("timm-mlp")
    moments = _moments(module, slot, x)
    covariance_HH = moments.covariance_HH.clone()
    covariance_HH[3], covariance_HH[:, 3] = 0.0, 0.0
    silent = replace(moments, covariance_HH=covariance_HH)
    message = refusal(lambda: Ridge(slot, order_H, silent, 0.0))
    assert "prune.damping: 0.0" in message
    assert "block blocks.0" in message
    weight_DK, shift_D = Ridge(slot, order_H, silent, 1e-4).refit(10)
    assert weight_DK.isfinite().all()
    assert shift_D.isfinite().all()


def test_too_few_tokens_and_infinite_ones_are_refused() -> None:
    module, slot, _, x = _make("timm-mlp")
    assert "20 tokens for the 20 neurons" in refusal(lambda: _moments(module, slot, x.flatten(0, 1)[:20]))
    x[0, 0, 0] = torch.inf
    assert "not finite" in refusal(lambda: _moments(module, slot, x))


def test_a_probe_leaves_the_whole_mlp_as_it_was() -> None:
    module, slot, order_H, x = _make("timm-mlp")
    compensator = Ridge(slot, order_H, _moments(module, slot, x), 1e-4)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with slot.narrowed(order_H[:5].sort().values):
        compensator.apply(slot, 5)
        assert not torch.equal(slot.out_projection.bias, before["fc2.bias"])
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_hooks_are_gone_after_an_exception() -> None:
    _, slot, *_ = _make("timm-mlp")
    with pytest.raises(KeyError), MomentCollector([slot]):
        raise KeyError
    assert not slot.out_projection._forward_pre_hooks


def test_a_killed_calibration_goes_on(tmp_path: Path) -> None:
    """From the batch that it had come to, or from all of them; in the same numbers."""
    module, slot, order_H, x = _make("timm-mlp")
    ran: list[int] = []

    def run(images: Tensor) -> None:
        if len(ran) == stop:
            raise KeyboardInterrupt
        ran.append(1)
        with torch.no_grad():
            module(images)

    def make(keep: bool) -> Compensation:
        def saved(name: str) -> SavedSums:
            return SavedSums(tmp_path / f"calibration.{name}.safetensors", {"settings": {}}, 2)

        settings = SearchSettings(compensation="ridge")
        return Compensation([slot], [order_H], run, x.chunk(5), settings, saved=saved if keep else None)

    stop = 99
    expected = make(keep=False).of(0).refit(7)  # type: ignore[union-attr, call-arg]
    for stop, new in ((3, 3), (99, 3), (99, 0)):
        ran.clear()
        if stop == 3:
            with pytest.raises(KeyboardInterrupt):
                make(keep=True).of(0)
        else:
            found = make(keep=True).of(0).refit(7)  # type: ignore[union-attr, call-arg]
            assert all(map(torch.equal, found, expected))
        assert len(ran) == new
    forget_sums(tmp_path / "calibration.safetensors")
    assert not list(tmp_path.iterdir())
