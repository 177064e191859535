"""What a feature reads, and towers without a feature of square RGB images, refused before any work."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, refusal
from helpers.hf_models import VISION, settings, write

from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs", "prefix", "read"),
    [
        ("vit_tiny_patch16_224", {}, 1, (0,)),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, 1, ()),
        ("deit_tiny_distilled_patch16_224", {}, 2, (0, 1)),
        ("vit_base_patch16_reg4_gap_256", {}, 4, ()),
        ("vit_small_patch14_reg4_dinov2", {}, 5, (0,)),
        ("vit_small_patch16_dinov3", {}, 5, (0,)),
        ("vit_small_patch16_dinov3", {"global_pool": "avg"}, 5, ()),
        ("vit_so400m_patch14_siglip_224", {}, 0, ()),
    ],
)
def test_prefix_tokens_that_the_feature_reads(
    name: str, kwargs: dict[str, Any], prefix: int, read: tuple[int, ...]
) -> None:
    model = ModelSettings(frame="timm", name=name, kwargs=SMALL | kwargs)
    for device in ("meta", "cpu"):
        tower = build_tower(model, device)
        assert (tower.num_prefix_tokens, tower.read_tokens) == (prefix, read)


def test_a_model_of_ones_own_weights_reads_what_it_reads_without(tower: Tower, meta: Tower) -> None:
    assert tower.read_tokens == meta.read_tokens == (0,)


def test_second_token_of_transformers_deit_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, "DeiTModel", VISION)
    tower = build_tower(settings(tmp_path))
    assert (tower.num_prefix_tokens, tower.read_tokens) == (2, (0,))


def test_the_class_token_of_dino_is_the_feature() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for frame in ("timm", "dinov2"):
        for name in ("vit_small_patch14_dinov2", "vit_small_patch16_dinov3"):
            tower = build_tower(ModelSettings(frame=frame, name=name, kwargs=SMALL))
            model: Any = tower.model
            assert torch.equal(tower.feature(images), model.norm(_last_block(tower.blocks, model, images))[:, 0])


def _last_block(blocks: Any, model: Any, images: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    [*blocks.values()][-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(images)
    return seen[0]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"img_size": [32, 64]}, "64"),
        ({"in_chans": 4}, "does not take square RGB images of 32 px"),
        ({"global_pool": ""}, "its tokens must be pooled to one vector"),
    ],
)
def test_towers_of_timm_without_a_feature_of_rgb_images_are_refused(kwargs: dict[str, Any], words: str) -> None:
    model = ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs=SMALL | kwargs)
    message = refusal(lambda: build_tower(model, "meta"))
    assert message.startswith("model.kwargs: ")
    assert words in message


def test_a_model_json_that_is_not_square_is_refused(tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "tiny-clip.json").read_text())
    config["vision_cfg"]["image_size"] = [32, 64]
    (tmp_path / "wide.json").write_text(json.dumps(config))
    message = refusal(lambda: build_tower(ModelSettings(name=str(tmp_path / "wide.json"))))
    assert message == f"model.name: {tmp_path}/wide.json: takes images of 32 x 64 px; only square ones are supported"
