"""open_clip's towers: what the readouts are, how the factory's arguments and the transform go through."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from amp.settings.model import ModelSettings, TransformSettings
from amp.towers import TokenReadout, Tower, build_tower


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _last_block(visual: Any, images: Tensor) -> Tensor:
    return visual.transformer(visual._embeds(images))


def test_feature_is_the_normalised_cls_before_the_projection(tower: Tower, images: Tensor) -> None:
    visual: Any = tower.visual
    feature = tower.feature(images)
    assert feature.shape == (4, 64)
    assert torch.equal(feature, visual.ln_post(_last_block(visual, images))[:, 0])
    assert torch.equal(feature @ visual.proj, tower.model.encode_image(images))


def test_projection_is_back_after_an_exception(tower: Tower) -> None:
    with pytest.raises(RuntimeError):
        tower.feature(torch.zeros(1, 5, 32, 32))
    assert tower.visual.proj is not None


def test_tokens_are_the_last_blocks_output(tower: Tower, images: Tensor) -> None:
    readout = TokenReadout(tower)
    expected = _last_block(tower.visual, images)
    for _ in range(2):
        tokens = readout(images)
        assert tokens.shape == (4, 17, 64)
        assert torch.equal(tokens, expected)


def test_everything_is_frozen_and_in_eval_mode(tower: Tower) -> None:
    assert not any(p.requires_grad for p in tower.model.parameters())
    assert not any(m.training for m in tower.model.modules())


def test_image_size_goes_to_the_factory_and_the_transform(
    golden_model: ModelSettings, tower: Tower, tmp_path: Path
) -> None:
    save_file(tower.model.state_dict(), tmp_path / "fp32.safetensors")
    changes = {"kwargs": {"img_size": 64}, "pretrained": str(tmp_path / "fp32.safetensors")}
    larger = build_tower(golden_model.model_copy(update=changes))
    assert larger.image_size == 64
    image = larger.transform(Image.new("RGB", (100, 80)))
    assert image.shape == (3, 64, 64)
    assert TokenReadout(larger)(image[None]).shape == (1, 65, 64)


def test_transform_overrides(golden_model: ModelSettings) -> None:
    own = TransformSettings(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear")
    tower = build_tower(golden_model.model_copy(update={"transform": own}))
    assert torch.equal(tower.transform(Image.new("RGB", (32, 32), "white")), torch.full((3, 32, 32), 2.0))
    assert "bilinear" in str(tower.transform)


def test_crop_pct_resizes_to_more_than_it_crops(golden_model: ModelSettings) -> None:
    tower = build_tower(golden_model.model_copy(update={"transform": TransformSettings(crop_pct=0.8)}))
    assert "size=40" in str(tower.transform)
    assert tower.transform(Image.new("RGB", (64, 48))).shape == (3, 32, 32)


def test_random_weights_are_the_same_everywhere(golden_model: ModelSettings) -> None:
    state = torch.get_rng_state()
    first, second = (build_tower(golden_model.model_copy(update={"pretrained": None})) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_json_named_like_a_library_model_does_not_shadow_it(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.json"
    path.write_text((GOLDEN / "tiny-clip.json").read_text())
    assert build_tower(ModelSettings(name=str(path)), "meta").widths == [256] * 5
    assert build_tower(ModelSettings(name="ViT-B-32"), "meta").widths == [3072] * 12


def test_base_rebuilds_the_model_without_its_files(tower: Tower, golden_model: ModelSettings, images: Tensor) -> None:
    base = json.loads(json.dumps(tower.base))
    gone = golden_model.model_copy(update={"name": "gone.json", "pretrained": None})
    twin = build_tower(gone, saved=base)
    twin.model.load_state_dict(tower.model.state_dict())
    assert torch.equal(twin.feature(images), tower.feature(images))
    image = Image.effect_noise((50, 40), 64)
    assert torch.equal(twin.transform(image), tower.transform(image))


def test_bf16_takes_bf16_images(golden_model: ModelSettings, tower: Tower, images: Tensor) -> None:
    low = build_tower(golden_model.model_copy(update={"precision": "bf16"}))
    feature = low.feature(images.to(low.dtype)).float()
    assert torch.cosine_similarity(feature, tower.feature(images)).min() > 0.999
