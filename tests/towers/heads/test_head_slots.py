"""Laws of attention heads: a slice is the network without their output, in the library's class, or it is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, refusal
from helpers import hf_models
from helpers.hf_models import DUAL, VISION

from amp.models.sizes import count_by_width, measure_widths
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower, on_meta, with_heads

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
TIMM = {
    "plain": ("timm", "vit_tiny_patch16_224", {}),
    "norms of queries and keys": ("timm", "vit_tiny_patch16_224", {"qk_norm": True, "qkv_bias": False}),
    "rotary, gated": ("timm", "eva02_tiny_patch14_224", {"attn_type": "rope"}),
    "dinov2": ("dinov2", "vit_small_patch14_dinov2", {"init_values": 0.5}),
}
HF = {
    "CLIPModel": {"vision_config": {**VISION, "num_attention_heads": 4}, "text_config": DUAL["text_config"]},
    "SiglipVisionModel": {**VISION, "num_attention_heads": 4},
    "ViTModel": {**VISION, "num_attention_heads": 4},
    "Dinov2Model": {**VISION, "num_attention_heads": 4},
    "DINOv3ViTModel": {**VISION, "num_attention_heads": 4},
}


def timm_tower(frame: Any, name: str, more: dict[str, Any]) -> Tower:
    return build_tower(ModelSettings(frame=frame, name=name, kwargs={**SMALL, **more}))


@pytest.mark.parametrize("case", [*TIMM, *HF])
def test_a_slice_is_the_network_without_the_heads_output(case: str, tmp_path: Path) -> None:
    if case in HF:
        hf_models.write(tmp_path, case, HF[case])
    tower = with_heads(build_tower(hf_models.settings(tmp_path)) if case in HF else timm_tower(*TIMM[case]))
    assert tower.num_heads == [4] * len(tower.blocks)
    images_BCSS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kept_K = torch.tensor([3, 0])
    with torch.no_grad():
        dense_BD = tower.feature(images_BCSS)
        for slot in tower.heads:
            gone = slot.inputs_of(torch.tensor([1, 2]))
            handle = slot.out_projection.register_forward_pre_hook(
                lambda module, inputs, gone=gone: (inputs[0].index_fill(-1, gone, 0.0),)
            )
            zeroed_BD = tower.feature(images_BCSS)
            handle.remove()
            with slot.narrowed(kept_K):
                torch.testing.assert_close(tower.feature(images_BCSS), zeroed_BD, rtol=0, atol=1e-5)
                assert slot.held == [3, 0]
                assert not torch.allclose(zeroed_BD, dense_BD, rtol=0, atol=1e-4)
            assert torch.equal(tower.feature(images_BCSS), dense_BD), "whole again"
        for slot in tower.heads:
            slot.keep(torch.tensor([1, 2, 3]))
            slot.keep(torch.tensor([2]))
        assert tower.feature(images_BCSS).isfinite().all()
    assert [slot.held for slot in tower.heads] == [[3]] * len(tower.blocks), "by their places in the dense model"
    assert with_heads(tower).num_heads == tower.num_heads, "found again where they are sliced"


@pytest.mark.parametrize("case", TIMM)
def test_arithmetic_counts_what_is_counted(case: str) -> None:
    tower = on_meta(with_heads(timm_tower(*TIMM[case])))
    counts = [1, 40, 3, 128]
    assert count_by_width(tower)(counts) == measure_widths(tower, counts)
    assert count_by_width(tower)(tower.counts) == measure_widths(tower, tower.counts)


@pytest.mark.parametrize(
    ("frame", "name", "more", "kind"),
    [
        ("timm", "eva02_tiny_patch14_224", SMALL, "EvaAttention"),
        ("timm", "beit_base_patch16_224", SMALL, "Attention"),
        # Rotary positions of their own for each head, which the blocks are handed.
        ("timm", "vit_small_patch16_rope_mixed_224", SMALL, "AttentionRope"),
        ("open_clip", str(GOLDEN / "tiny-clip.json"), {}, "MultiheadAttention"),
    ],
)
def test_classes_that_cannot_hold_fewer_heads_are_told(frame: Any, name: str, more: dict[str, Any], kind: str) -> None:
    tower = build_tower(ModelSettings(frame=frame, name=name, kwargs=more))
    said = refusal(lambda: with_heads(tower))
    assert said.startswith(f"prune.attention: heads: {kind} (block")
    assert said.endswith("does not support fewer heads; use none")
