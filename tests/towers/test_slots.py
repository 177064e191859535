"""Laws of `MlpSlot`: slicing is what it says, in every layout.

D embedding width, H hidden width, K kept neurons, T tokens.
"""

from typing import Any

import pytest
import torch
from helpers.mlp_layouts import ALL, NORMED, PLAIN, D, H, make_block, some_neurons
from torch import Tensor, nn

from amp.towers.mlps.find_slots import find_slots
from amp.towers.mlps.slots import MlpSlot


def images() -> Tensor:
    return torch.randn(3, 5, D, generator=torch.Generator().manual_seed(1))


def zero_dropped(slot: MlpSlot, kept_K: Tensor) -> None:
    """Zeroes the dropped neurons at the out-projection's input."""
    mask_H = torch.zeros(slot.hidden_width)
    mask_H[kept_K] = 1.0
    slot.out_projection.register_forward_pre_hook(lambda _, inputs: (inputs[0] * mask_H,))


class NormOfKept(nn.Module):
    """A hidden norm by its formula, with statistics over the kept neurons alone; zeros at the dropped ones."""

    def __init__(self, norm: Any, kept_K: Tensor) -> None:
        super().__init__()
        self.norm, self.kept_K = norm, kept_K

    def forward(self, x_BTH: Tensor) -> Tensor:
        x_BTK = x_BTH[..., self.kept_K]
        if isinstance(self.norm, nn.LayerNorm):
            x_BTK = x_BTK - x_BTK.mean(dim=-1, keepdim=True)
        x_BTK = x_BTK / (x_BTK.pow(2).mean(dim=-1, keepdim=True) + self.norm.eps).sqrt() * self.norm.weight[self.kept_K]
        if getattr(self.norm, "bias", None) is not None:
            x_BTK = x_BTK + self.norm.bias[self.kept_K]
        y_BTH = torch.zeros_like(x_BTH)
        y_BTH[..., self.kept_K] = x_BTK
        return y_BTH


@pytest.mark.parametrize("name", PLAIN)
def test_slicing_equals_zeroing_the_dropped_neurons(name: str) -> None:
    block, slot = make_block(name)
    masked, masked_slot = make_block(name)
    kept_K = some_neurons()
    zero_dropped(masked_slot, kept_K)
    dense_BTD, expected_BTD = block(images()), masked(images())
    slot.keep(kept_K)
    torch.testing.assert_close(block(images()), expected_BTD, rtol=0, atol=1e-5)
    assert (expected_BTD - dense_BTD).abs().max() > 0.1, "the dropped neurons were expected to matter"


@pytest.mark.parametrize("name", NORMED)
def test_a_hidden_norm_takes_its_statistics_over_the_kept_neurons(name: str) -> None:
    block, slot = make_block(name)
    by_hand, by_hand_slot = make_block(name)
    masked, masked_slot = make_block(name)
    kept_K = some_neurons()
    for key, child in by_hand.mlp.named_children():
        if child is by_hand_slot.norm:
            setattr(by_hand.mlp, key, NormOfKept(child, kept_K))
    zero_dropped(by_hand_slot, kept_K)
    zero_dropped(masked_slot, kept_K)
    slot.keep(kept_K)
    sliced_BTD = block(images())
    torch.testing.assert_close(sliced_BTD, by_hand(images()), rtol=0, atol=2e-5)
    # Which is why a candidate is judged by the sliced network, never by a mask.
    assert (sliced_BTD - masked(images())).abs().max() > 1e-2


@pytest.mark.parametrize("name", ALL)
def test_keeping_all_neurons_in_any_order_changes_nothing(name: str) -> None:
    block, slot = make_block(name)
    expected_BTD = block(images())
    slot.keep(some_neurons(H, seed=5))
    torch.testing.assert_close(block(images()), expected_BTD, rtol=0, atol=1e-5)
    assert slot.hidden_width == H


@pytest.mark.parametrize("name", ALL)
def test_slicing_twice_equals_slicing_once(name: str) -> None:
    twice, twice_slot = make_block(name)
    once, once_slot = make_block(name)
    first_K, second_K = some_neurons(12), torch.tensor([7, 0, 11, 3])
    twice_slot.keep(first_K)
    twice_slot.keep(second_K)
    once_slot.keep(first_K[second_K])
    assert twice.state_dict().keys() == once.state_dict().keys()
    assert all(torch.equal(value, once.state_dict()[key]) for key, value in twice.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_the_sliced_modules_tell_their_true_sizes(name: str) -> None:
    block, slot = make_block(name)
    bias_D = slot.out_projection.bias
    block.requires_grad_(False)
    slot.keep(some_neurons(8))
    rows = 16 if slot.packed else 8
    assert slot.hidden_width == 8
    for linear in slot.in_projections:
        assert (linear.in_features, linear.out_features) == (D, rows)
        assert linear.weight.shape == (rows, D)
        assert linear.bias is None or linear.bias.shape == (rows,)
    assert (slot.out_projection.in_features, slot.out_projection.out_features) == (8, D)
    assert slot.out_projection.weight.shape == (D, 8)
    assert slot.out_projection.bias is bias_D, "the output bias belongs to no neuron"
    if slot.norm is not None:
        assert tuple(slot.norm.normalized_shape) == (8,)
        assert all(parameter.shape == (8,) for parameter in slot.norm.parameters())
    assert not any(parameter.requires_grad for parameter in block.parameters()), "slicing keeps the freeze"
    # A slot found in the sliced block is the same slot.
    (again,) = find_slots({"blocks.0": block})
    assert (again.layout, again.hidden_width, again.out_projection) == (slot.layout, 8, slot.out_projection)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ending", ["normal", "exception inside", "wrong indices"])
def test_narrowed_restores_everything_bit_for_bit(name: str, ending: str) -> None:
    block, slot = make_block(name)
    expected_BTD = block(images())
    modules = [*slot.in_projections, slot.out_projection, *([slot.norm] if slot.norm is not None else [])]
    parameters = dict(block.named_parameters())
    values = {key: value.clone() for key, value in block.state_dict().items()}
    described = repr(block)
    kept_K = torch.tensor([0, H + 3]) if ending == "wrong indices" else some_neurons()
    try:
        with slot.narrowed(kept_K):
            assert slot.hidden_width == 8
            assert not torch.equal(block(images()), expected_BTD)
            if ending == "exception inside":
                raise KeyboardInterrupt
    except (KeyboardInterrupt, IndexError):
        assert ending != "normal"
    else:
        assert ending == "normal"
    assert repr(block) == described
    assert slot.hidden_width == H
    assert all(module is found for module, found in zip(modules, _modules_of(slot), strict=True))
    now = dict(block.named_parameters())
    assert list(now) == list(parameters)
    assert all(now[key] is parameter for key, parameter in parameters.items())
    assert all(torch.equal(value, values[key]) for key, value in block.state_dict().items())
    assert torch.equal(block(images()), expected_BTD)


def _modules_of(slot: MlpSlot) -> list[nn.Module]:
    return [*slot.in_projections, slot.out_projection, *([slot.norm] if slot.norm is not None else [])]


@pytest.mark.parametrize("name", ALL)
def test_narrowed_equals_keep(name: str) -> None:
    block, slot = make_block(name)
    with slot.narrowed(some_neurons()):
        narrowed_BTD = block(images())
    slot.keep(some_neurons())
    assert torch.equal(block(images()), narrowed_BTD)
