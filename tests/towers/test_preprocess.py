"""Images follow what the weights say: their tag, the name's, all tags of the name; then what the user says."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from helpers.hf_models import VISION, settings, write
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from amp.models.folder import load_tower, save_tower
from amp.settings.model import ModelSettings, TransformSettings
from amp.towers import Tower, build_tower, describe_preprocess

IMAGE = Image.effect_noise((301, 257), 64).convert("RGB")
CLIPS = ["ViT-B-32", "ViT-B-16-SigLIP", "ViT-H-14-CLIPA-336", "PE-Core-T-16-384", "MobileCLIP-B", "ViT-L-14"]
TIMMS = ["vit_tiny_patch16_224", "vit_base_patch16_224.mae", "vit_so400m_patch14_siglip_378.v2_webli"]
TIMMS += ["deit3_small_patch16_384", "vit_large_patch16_dinov3.sat493m", "beit_base_patch16_384.in22k_ft_in22k_in1k"]
SMALL = {"embed_dim": 64, "depth": 1, "num_heads": 4}


@pytest.fixture
def some_file(tmp_path: Path) -> str:
    """A weights file; on the meta device nobody reads it."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "own.pt")
    return str(tmp_path / "own.pt")


def _said(name: str, tag: str) -> dict[str, Any]:
    told = open_clip.get_pretrained_cfg(name, tag)
    return {key: told[key] for key in ("mean", "std", "interpolation", "resize_mode")}


def _of_open_clip(name: str, tag: str, size: Any) -> Tensor:
    own = PreprocessCfg(size=size, **_said(name, tag))
    transformed: Tensor = image_transform_v2(own, is_train=False)(IMAGE)
    return transformed


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
def test_images_of_open_clip_are_the_tags(name: str, some_file: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name)
    for tag in {str(_said(name, tag)): tag for tag in tags}.values():
        tower = build_tower(ModelSettings(frame="open_clip", name=name, pretrained=tag), "meta")
        assert torch.equal(tower.transform(IMAGE), _of_open_clip(name, tag, tower.image_size))
        assert not tower.notes
    by_file = build_tower(ModelSettings(frame="open_clip", name=name, pretrained=some_file), "meta")
    if name == "ViT-L-14":
        assert "laion2b_s32b_b82k differ from the one used here" in by_file.notes[0]
        assert torch.equal(by_file.transform(IMAGE), _of_open_clip(name, "openai", 224))
    else:
        assert torch.equal(by_file.transform(IMAGE), _of_open_clip(name, tags[0], by_file.image_size))
        assert not by_file.notes


def test_a_model_json_has_the_librarys_default(tower: Tower) -> None:
    assert torch.equal(tower.transform(IMAGE), image_transform_v2(PreprocessCfg(size=32), is_train=False)(IMAGE))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMMS)
def test_images_of_timm_are_the_tags(name: str, some_file: str) -> None:
    tower = build_tower(ModelSettings(frame="timm", name=name, pretrained=some_file, kwargs=SMALL), "meta")
    with torch.device("meta"):
        config = resolve_model_data_config(timm.create_model(name))
    assert torch.equal(tower.transform(IMAGE), create_transform(**config)(IMAGE))
    architecture, _, tag = name.partition(".")
    if tag:
        by_tag = build_tower(ModelSettings(frame="timm", name=architecture, pretrained=tag, kwargs=SMALL), "meta")
        assert by_tag.preprocess == tower.preprocess


def test_tags_of_timm_that_do_not_agree_are_told(some_file: str) -> None:
    model = ModelSettings(frame="dinov2", name="vit_large_patch16_dinov3", pretrained=some_file, kwargs=SMALL)
    assert "sat493m differ from the one used here); set model.transform" in build_tower(model, "meta").notes[0]
    said = TransformSettings(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert not build_tower(model.model_copy(update={"transform": said}), "meta").notes


def test_the_tag_in_a_name_is_the_folders_too(tmp_path: Path) -> None:
    """Of a tag with images and classes of its own, by a file of the user's."""
    name = "vit_base_patch16_384.augreg_in21k_ft_in1k"
    small = {"patch_size": 128, **SMALL}
    torch.save(timm.create_model(name, **small).state_dict(), tmp_path / "own.pt")
    tower = build_tower(ModelSettings(frame="timm", name=name, pretrained=str(tmp_path / "own.pt"), kwargs=small))
    assert tower.image_size == 384
    save_tower(tower, [list(range(width)) for width in tower.widths], {}, tmp_path / "pruned")
    twin = load_tower(tmp_path / "pruned")
    assert twin.preprocess == tower.preprocess
    assert torch.equal(twin.transform(IMAGE), tower.transform(IMAGE))


def test_images_of_transformers_are_the_processors(tmp_path: Path) -> None:
    write(tmp_path, "CLIPVisionModel", VISION)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], resample=2
    )
    processor.save_pretrained(tmp_path)
    tower = build_tower(settings(tmp_path))
    expected = processor(IMAGE, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(tower.transform(IMAGE), expected, rtol=0, atol=1e-5)
    assert describe_preprocess(tower).startswith(
        "images: 32 px, bilinear, crop 0.8, mean (0.1, 0.2, 0.3), std (0.26863"
    )


def test_the_user_has_the_last_word_and_it_is_told(golden_model: ModelSettings) -> None:
    own = TransformSettings(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear", crop_pct=0.9)
    tower = build_tower(golden_model.model_copy(update={"transform": own}))
    told = "images: 32 px, bilinear, crop 0.9, mean (0.5, 0.5, 0.5), std (0.25, 0.25, 0.25)"
    assert describe_preprocess(tower) == told
    siglip = ModelSettings(name="ViT-B-16-SigLIP", transform=own)
    assert describe_preprocess(build_tower(siglip, "meta")) == told.replace("32 px", "224 px")
