"""open_clip's trunks of timm, CoCa and EVA-CLIP; the five towers of the paper by their sizes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.model_folders import meta_tower

from amp.models.folder import load_tower, save_tower
from amp.models.sizes import count_flops, count_params
from amp.settings.model import GivenModelSettings, ModelSettings
from amp.towers import TokenReadout, after_last_block, build_tower, wrap_tower

pytestmark = pytest.mark.slow

TEXT = {"context_length": 8, "vocab_size": 512, "width": 16, "heads": 2, "layers": 1}
PAPER = [
    ("open_clip", "ViT-g-14", {}, 1.0126e9, 0.519e12, [6144] * 40),
    ("open_clip", "ViT-bigG-14", {}, 1.8449e9, 0.946e12, [8192] * 48),
    ("eva_clip", "EVA02-E-14-plus", {}, 4.3506e9, 2.234e12, [15360] * 64),
    ("eva_clip", "EVA-CLIP-8B", {}, 7.5261e9, 3.865e12, [20480] * 32),
    ("dinov2", "vit_giant_patch14_dinov2", {"img_size": 224}, 1.1348e9, 0.583e12, [4096] * 40),
]


@pytest.mark.parametrize(("frame", "name", "kwargs", "params", "flops", "widths"), PAPER, ids=[row[1] for row in PAPER])
def test_towers_of_the_paper(
    frame: Any, name: str, kwargs: dict[str, Any], params: float, flops: float, widths: list[int]
) -> None:
    tower = meta_tower(ModelSettings(frame=frame, name=name, kwargs=kwargs))
    assert tower.widths == widths
    assert count_params(tower) == pytest.approx(params, rel=2e-3)
    assert count_flops(tower) == pytest.approx(flops, rel=1e-2)


def _json(folder: Path, vision: dict[str, Any], **more: Any) -> str:
    path = folder / "model.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **more}))
    return str(path)


def _trunk(name: str, pool: str, proj: str) -> dict[str, Any]:
    return {"image_size": 160, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}


CLIPS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "trunk with linear head": (_trunk("test_vit", "token", "linear"), {"custom_text": True}, 1),
    "trunk with its own head": (_trunk("test_vit", "token", ""), {"custom_text": True}, 1),
    "trunk with average pool": (_trunk("test_vit", "avg", "none"), {"custom_text": True}, 1),
    "another trunk": (_trunk("test_vit2", "avg", "linear"), {"custom_text": True}, 1),
    "native with layer scale": (
        {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16, "ls_init_value": 0.1},
        {},
        1,
    ),
    "attention pool": (
        {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16, "attentional_pool": True}
        | {"attn_pooler_heads": 4},
        {},
        1,
    ),
    "CoCa": (
        {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16, "attentional_pool": True}
        | {"attn_pooler_heads": 4, "output_tokens": True},
        {"text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True}, "multimodal_cfg": TEXT, "custom_text": True},
        1,
    ),
}


@pytest.mark.parametrize("case", CLIPS)
def test_clip(case: str, tmp_path: Path) -> None:
    vision, more, prefix = CLIPS[case]
    tower = build_tower(ModelSettings(name=_json(tmp_path, vision, **more)))
    size = vision["image_size"]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    feature = tower.feature(images)
    assert feature.ndim == 2
    tokens = TokenReadout(tower)(images)
    assert tower.num_prefix_tokens == prefix
    assert math.isqrt(tokens.shape[1] - prefix) ** 2 == tokens.shape[1] - prefix
    kept = [list(range(0, slot.hidden_width, 2)) for slot in tower.slots]
    for slot, indices in zip(tower.slots, kept, strict=True):
        slot.keep(torch.tensor(indices))
    assert not torch.allclose(tower.feature(images), feature)
    save_tower(tower, kept, {}, tmp_path / "pruned")
    (tmp_path / "model.json").unlink()
    twin = load_tower(tmp_path / "pruned")
    assert torch.equal(twin.feature(images), tower.feature(images))
    assert torch.equal(twin.model.encode_image(images), tower.model.encode_image(images))


@pytest.mark.parametrize("case", CLIPS)
def test_bf16_gives_what_fp32_gives(case: str, tmp_path: Path) -> None:
    """open_clip leaves single parameters in fp32, which its own modules do not all bear."""
    vision, more, _ = CLIPS[case]
    found = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        tower = build_tower(ModelSettings(name=_json(tmp_path, vision, **more), precision=precision))
        size = vision["image_size"]
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(tower.dtype)
        assert tower.encode_image is not None
        assert tower.encode_text is not None
        texts = tower.encode_text(torch.arange(1, 17).view(2, 8))
        found.append([tower.feature(images), tower.encode_image(images), texts])
    for full, low in zip(*found, strict=True):
        assert torch.cosine_similarity(full, low.float()).min() > 0.999


def test_pools_and_projections_are_behind_the_last_block(tmp_path: Path) -> None:
    vision, more, _ = CLIPS["trunk with its own head"]
    head = after_last_block(build_tower(ModelSettings(name=_json(tmp_path, vision, **more)), "meta"))
    assert head == {"trunk.norm.weight", "trunk.norm.bias", "trunk.head.weight", "trunk.head.bias"}


@pytest.mark.parametrize("name", ["ViTamin-S", "PE-Core-T-16-384", "ViT-B-16-SigLIP", "coca_ViT-B-32", "EVA02-B-16"])
def test_towers_of_open_clip_on_meta(name: str) -> None:
    tower = build_tower(ModelSettings(name=name), "meta")
    assert len(tower.slots) >= 12
    assert tower.feature(torch.empty(1, 3, tower.image_size, tower.image_size, device="meta")).ndim == 2
    assert after_last_block(tower)


@pytest.mark.parametrize("size", [None, []])
def test_a_model_object_is_found_beside_one_that_leaves_its_images_open(
    size: Any, tmp_path: Path, golden_model: ModelSettings
) -> None:
    """open_clip knows every JSON that a process has built: one without a size of images is no reason to fail."""
    config = json.loads(Path(golden_model.name).read_text())
    config["vision_cfg"]["image_size"] = size
    (tmp_path / "open.json").write_text(json.dumps(config))
    build_tower(ModelSettings(name=str(tmp_path / "open.json"), kwargs={"img_size": 32}), "meta")
    assert wrap_tower(build_tower(golden_model).model, GivenModelSettings()).widths == [256] * 5
