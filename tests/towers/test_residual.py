"""The branches of a block, found by a probe, add to its hidden states what they are said to add."""

import pytest
import torch
from torch import Tensor, nn

from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower
from amp.towers.residual import Branch, block_calls, entering_blocks, find_branches, run_mlp

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}
# Name of a timm model, its arguments, the size of its LayerScale.
TOWERS = {
    "plain": ("vit_tiny_patch16_224", SMALL, 1.0),
    "LayerScale": ("vit_small_patch14_dinov2", {**SMALL, "patch_size": 8, "init_values": 0.1}, 0.1),
    "rotary, gated": ("eva02_tiny_patch14_224", SMALL, 1.0),
    "small LayerScale": ("beit_base_patch16_224", {**SMALL, "init_values": 1e-5}, 1e-5),
}


def build(name: str, precision: str = "fp32") -> Tower:
    if name == "open_clip":
        return build_tower(ModelSettings(frame="open_clip", name="ViT-B-32", kwargs={}, precision=precision))
    model, kwargs, _ = TOWERS[name]
    return build_tower(ModelSettings(frame="timm", name=model, kwargs=kwargs, precision=precision))


def first_block(tower: Tower) -> tuple[Branch, Branch, Tensor, Tensor, Tensor]:
    """Both branches; hidden states before, between and after them, of two images."""
    images = torch.randn(2, 3, tower.image_size, tower.image_size, generator=torch.manual_seed(0)).to(tower.dtype)
    hidden: list[Tensor] = []
    (call, *_), x = block_calls(tower, images, hidden.append), hidden[0]
    attention, mlp = find_branches(call, tower.slots[0], x)
    assert attention is not None
    assert mlp is not None
    with torch.no_grad():
        run = run_mlp(call, x, mlp, tower.slots[0])
        entering = attention.entering(lambda: call(x))
        added = attention.gain_D.float() * nn.functional.linear(
            entering, attention.linear.weight, attention.linear.bias
        )
    assert torch.equal(x, entering_blocks(tower, images))
    assert mlp.norm is not None
    torch.testing.assert_close(mlp.norm(attention.added(x, entering)), run.tokens_BTD, rtol=0, atol=1e-4)
    torch.testing.assert_close(x + added, run.mid_BTD, rtol=0, atol=1e-5)
    return attention, mlp, x, run.mid_BTD, run.out_BTD


@pytest.mark.parametrize("name", list(TOWERS))
def test_gains_are_those_of_layer_scale(name: str) -> None:
    tower = build(name)
    attention, mlp, *_ = first_block(tower)
    for gain_D in (attention.gain_D, mlp.gain_D):
        torch.testing.assert_close(gain_D.float(), torch.full_like(gain_D, TOWERS[name][2]).float(), rtol=1e-3, atol=0)
    assert attention.linear is tower.blocks["blocks.0"].attn.proj
    assert mlp.linear is tower.slots[0].out_projection


@pytest.mark.slow
def test_attention_that_calls_no_linear_is_found(tower: Tower) -> None:
    attention, _, *_ = first_block(tower)
    assert attention.functional is not None
    assert attention.linear is attention.functional.out_proj


def test_norms_that_compute_in_fp32_beside_weights_in_bf16(golden_model: ModelSettings) -> None:
    tower = build_tower(golden_model.model_copy(update={"precision": "bf16"}))
    images, hidden = torch.randn(2, 3, 32, 32).to(tower.dtype), list[Tensor]()
    (call, *_) = block_calls(tower, images, hidden.append)
    attention, mlp = find_branches(call, tower.slots[0], hidden[0])
    block = next(iter(tower.blocks.values()))
    assert attention is not None
    assert mlp is not None
    assert (attention.linear, mlp.linear, mlp.norm) == (block.attn.out_proj, tower.slots[0].out_projection, block.ln_2)
    for gain_D in (attention.gain_D, mlp.gain_D):
        torch.testing.assert_close(gain_D, torch.ones_like(gain_D), rtol=1e-3, atol=0)


def test_a_probe_leaves_the_block_as_it_was() -> None:
    tower = build("plain")
    before = {key: value.clone() for key, value in tower.visual.state_dict().items()}
    first_block(tower)
    assert all(torch.equal(before[key], value) for key, value in tower.visual.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tower.visual.modules())


def test_what_a_norm_takes_in_again_is_no_branch() -> None:
    tower = build("plain")
    call = block_calls(tower, torch.randn(2, 3, 32, 32))[0]
    block = call.block
    assert isinstance(block, nn.Module)
    block.ls2 = nn.LayerNorm(24)  # as of blocks that normalise what a branch gives
    assert find_branches(call, tower.slots[0], torch.randn(2, 5, 24)) == (None, None)
