"""Laws of finding MLPs: by structure, in every layout, one a block; what is no MLP is refused.

D embedding width, H hidden width, T tokens.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.mlp_layouts import ALL, LN, Block, D, H, make_block, some_neurons
from timm.layers import Mlp, SwiGLU
from torch import Tensor, nn

from amp.errors import UserError
from amp.towers.mlps.find_slots import find_slots


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


class SplitBlock(nn.Module):
    """A block whose MLP is split over two of its children; its attention is torch's, with a Linear D -> D of its own.

    It is called with a bias of the attention's, of a size that only the tower knows, and gives a tuple.
    """

    def __init__(self, mixing: bool = False) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(D), nn.MultiheadAttention(D, 2, batch_first=True)
        self.mixing = nn.Softmax(dim=-1) if mixing else nn.Identity()
        self.intermediate = nn.Sequential(nn.Linear(D, H), nn.GELU())
        self.output = nn.Sequential(nn.Linear(H, D), nn.Dropout())

    def forward(self, x_BTD: Tensor, bias_TT: Tensor) -> tuple[Tensor, Tensor]:
        attended_BTD, weights = self.attention(x_BTD, x_BTD, x_BTD, attn_mask=bias_TT)
        return x_BTD + self.output(self.mixing(self.intermediate(self.norm(x_BTD + attended_BTD)))), weights


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mixing", [False, True])
def test_a_block_is_proved_by_what_the_tower_calls_it_with(device: str, mixing: bool) -> None:
    with torch.device(device):
        blocks = {f"blocks.{index}": SplitBlock(mixing) for index in range(2)}
        x_BTD, bias_TT = torch.zeros(1, 5, D), torch.zeros(5, 5)

    def run() -> None:
        tokens_BTD = x_BTD
        for block in blocks.values():
            tokens_BTD, _ = block(tokens_BTD, bias_TT=bias_TT)

    with pytest.raises(UserError, match="0 prunable MLPs"):
        find_slots(blocks)
    if mixing:
        with pytest.raises(UserError, match="0 prunable MLPs"):
            find_slots(blocks, run)
        return
    slots = find_slots(blocks, run)
    assert [slot.out_projection for slot in slots] == [block.output[0] for block in blocks.values()]
    assert not any(block._forward_pre_hooks for block in blocks.values())


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


class WithFunction(nn.Module):
    """An MLP whose non-linearity is a function, which does not show in its `repr`."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(D, H), act, nn.Linear(H, D)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_BTD)))


def test_a_proof_does_not_hold_for_another_function_in_a_later_tower() -> None:
    def each(h_BTH: Tensor) -> Tensor:
        return h_BTH.relu()

    def mixed(h_BTH: Tensor) -> Tensor:
        return h_BTH.softmax(dim=-1)

    assert repr(WithFunction(each)) == repr(WithFunction(mixed))
    assert len(find_slots({"blocks.0": Block(WithFunction(each))})) == 1
    with pytest.raises(UserError, match="holds 0 prunable MLPs"):
        find_slots({"blocks.0": Block(WithFunction(mixed))})
