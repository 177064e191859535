"""Hugging Face's towers: features as the library gives them, slicing, self-contained folders."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.hf_models import DINOV3, DUAL, SIZE, VISION, settings, write
from PIL import Image
from torch import Tensor

from amp.models.folder import load_tower, save_tower
from amp.settings.model import TransformSettings
from amp.towers import TokenReadout, Tower, after_last_block, build_tower

pytestmark = pytest.mark.slow


def _by_library(model: Any, part: str, readout: str, images: Tensor) -> Tensor:
    output = (getattr(model, part) if part else model)(images)
    tokens = output.last_hidden_state
    means = {"cls": tokens[:, 0], "mean": tokens.mean(1)}
    return output.pooler_output if readout == "pooled" else means[readout]


BIASED, SHARED = {"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}
# Class, settings of its config, hidden width, layout, prefix tokens, where the library's own feature is.
CASES: list[tuple[str, dict[str, Any], int, str, int, str, str]] = [
    ("CLIPModel", DUAL, 48, "plain", 1, "vision_model", "pooled"),
    ("CLIPVisionModel", VISION, 48, "plain", 1, "", "pooled"),
    ("CLIPVisionModelWithProjection", VISION, 48, "plain", 1, "vision_model", "pooled"),
    ("CLIPForImageClassification", DUAL, 48, "plain", 1, "vision_model", "pooled"),
    ("MetaClip2VisionModel", VISION, 48, "plain", 1, "", "pooled"),
    ("MLCDVisionModel", VISION, 48, "plain", 1, "", "pooled"),
    ("SiglipModel", DUAL, 48, "plain", 0, "vision_model", "pooled"),
    ("SiglipVisionModel", VISION, 48, "plain", 0, "", "pooled"),
    ("SiglipVisionModel", {**VISION, "vision_use_head": False}, 48, "plain", 0, "", "mean"),
    ("Aimv2VisionModel", VISION, 48, "split gate", 0, "", "pooled"),
    ("Dinov2Model", SIZE, 128, "plain", 1, "", "cls"),
    ("Dinov2ForImageClassification", {**SIZE, "use_swiglu_ffn": True}, 88, "split gate", 1, "base_model", "cls"),
    ("Dinov2WithRegistersModel", SIZE, 128, "plain", 5, "", "cls"),
    ("DINOv3ViTModel", {**VISION, **DINOV3}, 48, "plain", 5, "", "cls"),
    ("DINOv3ViTModel", {**VISION, **DINOV3, "use_gated_mlp": True}, 48, "split gate", 5, "", "cls"),
    ("ViTModel", VISION, 48, "plain", 1, "", "cls"),
    ("ViTForImageClassification", VISION, 48, "plain", 1, "base_model", "cls"),
    ("ViTMSNModel", VISION, 48, "plain", 1, "", "cls"),
    ("DeiTModel", VISION, 48, "plain", 2, "", "cls"),
    ("BeitModel", {**VISION, "use_relative_position_bias": True}, 48, "plain", 1, "", "pooled"),
    ("Data2VecVisionForImageClassification", {**VISION, **BIASED}, 48, "plain", 1, "base_model", "pooled"),
    ("Data2VecVisionModel", {**VISION, **SHARED, "use_mean_pooling": False}, 48, "plain", 1, "", "cls"),
    ("FlavaImageModel", VISION, 48, "plain", 1, "", "cls"),
    ("IJepaModel", VISION, 48, "plain", 0, "", "mean"),
]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _halve(tower: Tower) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(w, generator=generator)[: w // 2].sort().values for w in tower.widths]


def _masked(tower: Tower, kept: list[Tensor], images: Tensor) -> Tensor:
    hooks = []
    for slot, kept_K in zip(tower.slots, kept, strict=True):
        mask = torch.zeros(slot.hidden_width).index_fill(0, kept_K, 1)
        hooks.append(slot.out_projection.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,)))
    feature = tower.feature(images)
    for hook in hooks:
        hook.remove()
    return feature


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3]}")
def test_family(case: tuple[Any, ...], tmp_path: Path, images: Tensor) -> None:
    name, config, width, layout, prefix, *by_library = case
    model = write(tmp_path / "dense", name, config)
    tower = build_tower(settings(tmp_path / "dense"))
    dense = tower.feature(images)
    assert type(tower.model) is type(model)
    assert torch.equal(dense, _by_library(model, *by_library, images))
    assert tower.widths == [width] * 3
    assert {slot.layout for slot in tower.slots} == {layout}
    assert tower.num_prefix_tokens == prefix
    assert TokenReadout(tower)(images).shape == (4, prefix + 16, 32)
    meta = build_tower(settings(tmp_path / "dense"), "meta")
    assert {p.device.type for p in meta.model.parameters()} == {"meta"}
    assert meta.difference(tower.base) is None
    head = after_last_block(meta)
    assert any("norm" in path for path in head)
    assert not any(path.startswith(block) for path in head for block in tower.blocks)

    kept = _halve(tower)
    masked = _masked(tower, kept, images)
    for slot, kept_K in zip(tower.slots, kept, strict=True):
        slot.keep(kept_K)
    sliced = tower.feature(images)
    assert (sliced - dense).abs().max() > 1e-3
    torch.testing.assert_close(sliced, masked, rtol=1e-4, atol=1e-5)

    save_tower(tower, [k.tolist() for k in kept], {}, tmp_path / "pruned")
    shutil.rmtree(tmp_path / "dense")
    loaded = load_tower(tmp_path / "pruned")
    assert torch.equal(loaded.feature(images), sliced)
    image = Image.effect_noise((50, 40), 64)
    assert torch.equal(loaded.transform(image), tower.transform(image))
    readers = (loaded.make_tokenizer(), loaded.encode_image, loaded.encode_text)
    assert [reader is not None for reader in readers] == [name in ("CLIPModel", "SiglipModel")] * 3


def test_whole_model_is_kept_and_bf16_leaves_frequencies_alone(tmp_path: Path, images: Tensor) -> None:
    model = write(tmp_path / "a", "ViTForImageClassification", {**VISION, "num_labels": 7})
    tower = build_tower(settings(tmp_path / "a"))
    assert torch.equal(tower.model(images).logits, model(images).logits)
    write(tmp_path / "b", "DINOv3ViTModel", {**VISION, **DINOV3})
    full, low = (build_tower(settings(tmp_path / "b", precision=p)) for p in ("fp32", "bf16"))
    feature = low.feature(images.to(low.dtype))
    assert feature.dtype == torch.bfloat16
    assert torch.cosine_similarity(feature.float(), full.feature(images)).min() > 0.99
    assert torch.equal(low.model.rope_embeddings.inv_freq, full.model.rope_embeddings.inv_freq)


def test_sizes(tmp_path: Path) -> None:
    write(tmp_path / "any", "Dinov2Model", SIZE)
    larger = build_tower(settings(tmp_path / "any", transform=TransformSettings(input_size=48)))
    image = larger.transform(Image.new("L", (60, 70)))
    assert TokenReadout(larger)(image[None]).shape == (1, 37, 32)
    write(tmp_path / "fixed", "ViTModel", VISION)
    message = refusal(lambda: build_tower(settings(tmp_path / "fixed", transform=TransformSettings(input_size=48))))
    assert "takes images of 32 px" in message
    rebuilt = build_tower(settings(tmp_path / "fixed", kwargs={"img_size": 64}), "meta")
    assert rebuilt.image_size == 64
    message = refusal(lambda: build_tower(settings(tmp_path / "fixed", kwargs={"img_size": 64})))
    assert "not the weights of" in message


def test_weights_may_come_from_another_folder(tmp_path: Path, images: Tensor) -> None:
    write(tmp_path / "a", "ViTModel", VISION)
    other = write(tmp_path / "b", "ViTModel", VISION, seed=1)
    tower = build_tower(settings(tmp_path / "a", pretrained=str(tmp_path / "b")))
    assert torch.equal(tower.feature(images), _by_library(other, "", "cls", images))
