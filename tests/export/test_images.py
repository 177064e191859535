"""How images are prepared, as plain data: with PIL and numpy alone, the same numbers as the tower's own transform."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusal
from pages import documented, picture

from amp.export import describe_images
from amp.settings.model import ModelSettings, TransformSettings
from amp.towers import Tower, build_tower

prepare = documented("docs/export.md", "prepare")


def check(tower: Tower) -> None:
    """Wide, tall and small pictures, of odd sides."""
    how = describe_images(tower)
    for width, height in [(301, 197), (150, 333), (21, 20), (tower.image_size, tower.image_size)]:
        image = picture(width, height)
        own = prepare(image, how)
        assert own.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(own), tower.transform(image), rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "preprocess",
    [{"resize_mode": "squash"}, {"resize_mode": "longest", "fill_color": 7}, {"interpolation": "bilinear"}],
    ids=str,
)
def test_of_open_clip(tower: Tower, preprocess: dict[str, Any]) -> None:
    from amp.towers import rebuild_dense

    check(tower)
    check(rebuild_dense({**tower.base, "preprocess": {**tower.preprocess, **preprocess}}, "meta"))


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_of_timm(crop_mode: str) -> None:
    from amp.towers import rebuild_dense

    tower = build_tower(ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs={"depth": 1}), "meta")
    check(rebuild_dense({**tower.base, "preprocess": {**tower.preprocess, "crop_mode": crop_mode}}, "meta"))


@pytest.mark.parametrize("own", [{}, {"crop_pct": 0.8, "interpolation": "bilinear"}], ids=str)
def test_of_transformers(tmp_path: Path, own: dict[str, Any]) -> None:
    from helpers import hf_models

    hf_models.write(tmp_path / "vit", "ViTModel", hf_models.VISION)
    check(build_tower(hf_models.settings(tmp_path / "vit", transform=TransformSettings(**own)), "meta"))


def test_of_a_crop_with_settings_of_ours(golden_model: ModelSettings) -> None:
    check(build_tower(golden_model.model_copy(update={"transform": TransformSettings(crop_pct=0.9)}), "meta"))


def test_what_has_no_description_is_refused(tower: Tower) -> None:
    from amp.towers import rebuild_dense

    unknown = rebuild_dense({**tower.base, "preprocess": {**tower.preprocess, "interpolation": "random"}}, "meta")
    assert "random" in refusal(lambda: describe_images(unknown))
