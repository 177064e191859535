"""Laws of `MlpSlot`: found by structure in every layout; slicing is what it says.

D embedding width, H hidden width, K kept neurons, T tokens.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import Attention, GluMlp, Mlp, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.vitamin import GeGluMlp
from torch import Tensor, nn

from amp.errors import UserError
from amp.mlp import MlpSlot, find_slots

D, H = 12, 20


def sequential(norm: nn.Module | None = None) -> nn.Sequential:
    """open_clip's MLP: plain, or with `scale_fc` a norm between in-projection and activation."""
    children: list[tuple[str, nn.Module]] = [("c_fc", nn.Linear(D, H))]
    children += [("ln", norm)] if norm is not None else []
    return nn.Sequential(OrderedDict([*children, ("gelu", nn.GELU()), ("c_proj", nn.Linear(H, D))]))


# Two norms of one formula each, so that the reference below can be written out.
LN = nn.LayerNorm
PLAIN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm-mlp": (lambda: Mlp(D, H), "plain"),
    "timm-mlp-no-bias": (lambda: Mlp(D, H, bias=False), "plain"),
    "timm-mlp-relu": (lambda: Mlp(D, H, act_layer=nn.ReLU), "plain"),
    "open-clip": (sequential, "plain"),
    "packed-swiglu": (lambda: SwiGLUPacked(D, 2 * H), "packed gate"),
    "packed-glu": (lambda: GluMlp(D, 2 * H, bias=False), "packed gate"),
    "split-swiglu": (lambda: SwiGLU(D, H), "split gate"),
    "split-swiglu-no-bias": (lambda: SwiGLU(D, H, bias=False), "split gate"),
    "vitamin-geglu": (lambda: GeGluMlp(D, H), "split gate"),
}
NORMED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm-mlp-layernorm": (lambda: Mlp(D, H, norm_layer=LN), "plain + norm"),
    "timm-mlp-rmsnorm": (lambda: Mlp(D, H, norm_layer=partial(RmsNorm, eps=1e-5)), "plain + norm"),
    "open-clip-scale-fc": (lambda: sequential(LN(H)), "plain + norm"),
    "packed-layernorm": (lambda: SwiGLUPacked(D, 2 * H, norm_layer=LN), "packed gate + norm"),
    "split-layernorm": (lambda: SwiGLU(D, H, norm_layer=LN), "split gate + norm"),
    "split-rmsnorm": (lambda: SwiGLU(D, H, norm_layer=partial(nn.RMSNorm, eps=1e-5)), "split gate + norm"),
}
ALL = PLAIN | NORMED


class Block(nn.Module):
    """A transformer block with timm's attention."""

    def __init__(self, mlp: nn.Module | None, *more: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = LN(D), Attention(D, num_heads=2), LN(D)
        self.mlp = mlp or nn.Identity()
        self.more = nn.ModuleList(more)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


def make_block(name: str) -> tuple[Block, MlpSlot]:
    """A block in which every parameter matters."""
    block = Block(ALL[name][0]()).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    (slot,) = find_slots({"blocks.0": block})
    return block, slot


def images() -> Tensor:
    return torch.randn(3, 5, D, generator=torch.Generator().manual_seed(1))


def some_neurons(count: int = 8, seed: int = 0) -> Tensor:
    return torch.randperm(H, generator=torch.Generator().manual_seed(seed))[:count]


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


@pytest.mark.parametrize("name", ALL)
def test_every_layout_is_found(name: str) -> None:
    block, slot = make_block(name)
    linears = [m for m in block.mlp.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in block.mlp.children() if tuple(getattr(m, "normalized_shape", ())) == (H,)]
    assert slot.layout == ALL[name][1]
    assert slot.hidden_width == H
    assert slot.name == "blocks.0"
    assert [*slot.in_projections, slot.out_projection] == linears
    assert [slot.norm] == (norms or [None])


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


@pytest.mark.parametrize("name", ALL)
def test_every_layout_is_found_and_sliced_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        blocks = {f"blocks.{index}": Block(ALL[name][0]()) for index in range(2)}
    slots = find_slots(blocks)
    assert [slot.layout for slot in slots] == [ALL[name][1]] * 2
    slots[0].keep(some_neurons())
    assert [slot.hidden_width for slot in slots] == [8, H]
    assert all(p.device.type == "meta" for block in blocks.values() for p in block.parameters())


def test_finding_slots_leaves_the_blocks_and_the_random_state_alone() -> None:
    block, _ = make_block("split-layernorm")
    block.train()
    values = {key: value.clone() for key, value in block.state_dict().items()}
    state = torch.get_rng_state()
    find_slots({"blocks.0": block})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, values[key]) for key, value in block.state_dict().items())
    assert all(module.training for module in block.modules())
    assert not any(module._forward_pre_hooks for module in block.modules())
    assert not any(parameter.grad is not None for parameter in block.parameters())


def test_one_slot_a_block_in_the_order_of_the_blocks() -> None:
    widths = {"blocks.1": 24, "blocks.0": 16, "blocks.2": 20}
    slots = find_slots({name: Block(Mlp(D, width)) for name, width in widths.items()})
    assert {slot.name: slot.hidden_width for slot in slots} == widths
    assert [slot.name for slot in slots] == list(widths)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish])
def test_the_proof_of_a_layout_does_not_hang_on_its_size(activation: type[nn.Module]) -> None:
    """A neuron that a rectifier happens to silence on the probe's few tokens is still a neuron."""
    for width in range(8, 65, 8):
        for ratio in (2, 3, 4):
            (slot,) = find_slots({"blocks.0": nn.Sequential(Mlp(width, ratio * width, act_layer=activation))})
            assert slot.hidden_width == ratio * width


class AttentionLike(nn.Module):
    """Linears shaped as a split gate, which mix their outputs as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(D, H), nn.Linear(D, H), nn.Linear(H, D)

    def forward(self, x_BTD: Tensor) -> Tensor:
        query_BTH = self.query(x_BTD)
        return self.out((query_BTH @ self.key(x_BTD).mT).softmax(dim=-1) @ query_BTH)


class AttentionWithMask(AttentionLike):
    """The same, called with an attention mask."""

    def forward(self, x_BTD: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x_BTD)


class AttentionOfPair(AttentionLike):
    """The same, called with an object that has both inputs."""

    def forward(self, pair: Any) -> Tensor:
        return super().forward(pair.tokens)


class AttentionOfWindows(AttentionLike):
    """The same, on windows (B, rows, columns, D)."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4, "expected windows"
        return super().forward(x)


NO_MLP: dict[str, Callable[[], nn.Module]] = {
    "attention": AttentionLike,
    "attention with a mask": AttentionWithMask,
    "attention of a pair": AttentionOfPair,
    "attention of windows": AttentionOfWindows,
    "torch attention": lambda: nn.MultiheadAttention(D, 2),
    "softmax over neurons": lambda: nn.Sequential(nn.Linear(D, H), nn.Softmax(dim=-1), nn.Linear(H, D)),
    "second hidden layer": lambda: nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, H), nn.Linear(H, D)),
    "norm without weight": lambda: Mlp(D, H, norm_layer=partial(LN, elementwise_affine=False)),
    "convolutions": lambda: Mlp(D, H, use_conv=True),
    "one linear": lambda: nn.Linear(D, H),
    "nothing": nn.Identity,
}


@pytest.mark.parametrize("name", NO_MLP)
def test_what_is_no_mlp_is_refused(name: str) -> None:
    blocks = {"blocks.0": Block(Mlp(D, H)), "blocks.1": Block(NO_MLP[name]())}
    with pytest.raises(UserError) as caught:
        find_slots(blocks)
    message = str(caught.value)
    assert "'blocks.1'" in message
    assert "'blocks.0'" not in message
    assert "0 prunable MLPs, expected one" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", NO_MLP)
def test_what_is_no_mlp_does_not_hide_the_mlp_beside_it(name: str) -> None:
    mlp = Mlp(D, H)
    (slot,) = find_slots({"blocks.0": Block(mlp, NO_MLP[name]())})
    assert slot.out_projection is mlp.fc2


def test_a_block_with_two_mlps_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        find_slots({"blocks.0": Block(Mlp(D, H)), "blocks.1": Block(Mlp(D, H), SwiGLU(D, H))})
    message = str(caught.value)
    assert "'blocks.1'" in message
    assert "2 prunable MLPs, expected one" in message
    assert "\n" not in message


def test_a_proof_holds_for_one_module_only() -> None:
    """Sequentials of one shape are not one MLP: a block is not believed because the block before it was proved."""
    proved = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D))
    mixing = nn.Sequential(nn.Linear(D, H), nn.Softmax(dim=-1), nn.Linear(H, D))
    with pytest.raises(UserError, match=r"'blocks\.1'"):
        find_slots({"blocks.0": Block(proved), "blocks.1": Block(mixing)})


def test_copies_of_a_block_have_slots_of_their_own() -> None:
    block, _ = make_block("timm-mlp")
    slots = find_slots({"blocks.0": block, "blocks.1": copy.deepcopy(block)})
    slots[0].keep(some_neurons())
    assert [slot.hidden_width for slot in slots] == [8, H]
