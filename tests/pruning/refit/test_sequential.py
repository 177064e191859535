"""Laws of the sequential refit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import refusal
from torch import Tensor, nn

from amp.pruning.measure.store import InputStore
from amp.pruning.refit import sequential
from amp.pruning.refit._least_squares import LeastSquares
from amp.pruning.refit.sequential import refit_whole
from amp.run.world import world
from amp.settings.model import ModelSettings
from amp.settings.prune import SearchSettings
from amp.statistics.saved_sums import SavedSums
from amp.towers import Tower, build_tower, in_order, with_heads

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
HEADER: dict[str, Any] = {"settings": {}}


def build(name: str = "vit_tiny_patch16_224", **more: Any) -> Tower:
    torch.manual_seed(1)
    tower = build_tower(ModelSettings(frame="timm", name=name, kwargs={**SMALL, **more}))
    with torch.no_grad():  # random weights as small as timm's leave the hidden states as they are
        for slot in tower.slots:
            for linear in (*slot.in_projections, slot.out_projection):
                linear.weight.mul_(20)
    return tower


def images(count: int, seed: int = 0) -> list[Tensor]:
    coarse = torch.randn(count, 8, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return [F.interpolate(batch, 32, mode="bilinear") for batch in coarse]


def refit(tower: Tower, kept: Sequence[Tensor], batches: Sequence[Tensor], damping: float = 1e-3, **saved: Any) -> Any:
    settings = SearchSettings(compensation="sequential", damping=damping, refit_steps=20, refit_views=2)
    return refit_whole(tower, kept, batches, settings, InputStore("host", world().device), saved.get("saved"))


def first_neurons(tower: Tower, share: float) -> list[Tensor]:
    return [torch.arange(max(1, int(share * width))) for width in tower.widths]


def features(tower: Tower, batches: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([tower.feature(batch) for batch in batches])


def test_a_network_that_keeps_all_stays_as_it_is() -> None:
    tower, batches = build(), images(4)
    before = features(tower, batches)
    errors = refit(tower, first_neurons(tower, 1.0), batches)
    torch.testing.assert_close(features(tower, batches), before, rtol=0, atol=1e-4)
    assert all(one["without"] < 1e-6 for one in errors)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch14_dinov2", {"init_values": 0.1}),
        ("eva02_tiny_patch14_224", {}),
        ("eva02_base_patch14_224", {}),  # a hidden norm
        ("vit_tiny_patch16_224", {"proj_bias": False}),
    ],
    ids=["plain", "LayerScale", "gated", "hidden norm", "no bias"],
)
def test_errors_fall_and_the_feature_comes_back(name: str, more: dict[str, Any]) -> None:
    tower, batches = build(name, **more), images(12)
    fresh = images(4, seed=1)
    dense, kept = features(tower, fresh), first_neurons(tower, 0.5)
    sliced = build(name, **more)
    for slot, indices in zip(sliced.slots, kept, strict=True):
        slot.keep(indices)
    errors = refit(tower, kept, batches)
    assert all(one["with"] < one["without"] for one in errors)
    assert (features(tower, fresh) - dense).norm() < 0.7 * (features(sliced, fresh) - dense).norm()


def test_copies_stand_in_for_what_is_removed() -> None:
    tower, batches = build(), images(12)
    with torch.no_grad():
        for slot in tower.slots:
            half = slot.hidden_width // 2
            for parameter in (slot.in_projections[0].weight, slot.in_projections[0].bias):
                parameter[half:] = parameter[:half]
    dense = features(tower, batches)
    refit(tower, first_neurons(tower, 0.5), batches, damping=1e-9)
    torch.testing.assert_close(features(tower, batches), dense, rtol=0, atol=2e-3)


def test_sums_give_the_weighted_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    a_BTE, y_BTD = torch.randn(40, 5, 6, generator=generator), torch.randn(40, 5, 3, generator=generator)
    y_BTD += a_BTE @ torch.randn(6, 3, generator=generator) + 2.0
    sums = LeastSquares(6, 3, torch.device("cpu"), "block")
    for a, y in zip(a_BTE.chunk(4), y_BTD.chunk(4), strict=True):
        sums.add(a.flatten(0, 1), y.flatten(0, 1), y.flatten(0, 1))
        sums.add(a[:, 0], y[:, 0], y[:, 0], weight=15.0)
    change_DE, shift_D, errors = sums.solve(0.0, constant=True)
    root_N1 = torch.tensor([16.0, 1, 1, 1, 1]).sqrt().repeat(40)[:, None].double()
    rows = torch.cat([a_BTE.flatten(0, 1), torch.ones(200, 1)], 1).double()
    expected = torch.linalg.lstsq(rows * root_N1, y_BTD.flatten(0, 1).double() * root_N1).solution
    torch.testing.assert_close(torch.cat([change_DE.T, shift_D[None]]), expected, rtol=1e-4, atol=1e-5)
    left = (rows @ expected - y_BTD.flatten(0, 1).double()) * root_N1
    mean = (y_BTD.flatten(0, 1) * root_N1**2).sum(0) / root_N1.square().sum()
    variance = ((y_BTD.flatten(0, 1) - mean) * root_N1).square().sum()
    assert errors["with"] == pytest.approx(float(left.square().sum() / variance), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda tower: tower, with_heads], ids=["neurons", "heads too"])
def test_a_killed_refit_ends_in_the_same_bytes(
    change: Callable[[Tower], Tower], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved(name: str) -> SavedSums:
        return SavedSums(tmp_path / f"unfinished.{name}.safetensors", HEADER, 1)

    whole, killed, resumed = (change(build()) for _ in range(3))
    kept = in_order(first_neurons(whole, 0.5), [torch.tensor([1]) for _ in whole.heads])
    batches = images(4)
    expected = refit(whole, kept, batches)
    run_attention: Callable[..., None] = sequential._Refit.run_attention

    def die(self: Any, block: int, heads: Any) -> None:
        if block == 2:
            raise KeyboardInterrupt
        run_attention(self, block, heads)

    monkeypatch.setattr(sequential._Refit, "run_attention", die)
    with pytest.raises(KeyboardInterrupt):
        refit(killed, kept, batches, saved=saved)
    monkeypatch.undo()
    assert refit(resumed, kept, batches, saved=saved) == expected
    for name, value in whole.visual.state_dict().items():
        assert torch.equal(value, resumed.visual.state_dict()[name]), name


def test_blocks_that_are_no_chain_are_told() -> None:
    tower = build()
    tower.blocks["blocks.1"].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,), prepend=True)
    said = refusal(lambda: refit(tower, first_neurons(tower, 0.5), images(2)))
    assert said.startswith("prune.compensation: the blocks of a VisionTransformer do not form a chain")


def test_a_norm_behind_the_mlp_is_told() -> None:
    tower = build()
    tower.blocks["blocks.0"].ls2 = nn.LayerNorm(24)
    said = refusal(lambda: refit(tower, first_neurons(tower, 0.5), images(2)))
    assert "does not add its MLP output to the hidden states" in said
