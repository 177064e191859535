"""DINOv2 from Meta's files: equal to Meta's own formulation, at other sizes too."""

from pathlib import Path

import pytest
import torch
from helpers.meta_dinov2 import MetaDinov2

from amp.settings.model import ModelSettings
from amp.towers import build_tower

SIZE = {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 5.5}


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 48, 64, 16])
def test_metas_file_gives_metas_features(size: int, tmp_path: Path) -> None:
    reference = MetaDinov2()
    torch.save(reference.state, tmp_path / "dinov2.pth")
    settings = {"frame": "dinov2", "name": "vit_giant_patch14_dinov2", "kwargs": {**SIZE, "img_size": size}}
    tower = build_tower(ModelSettings(**settings, pretrained=str(tmp_path / "dinov2.pth")))
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert tower.feature(images).shape == (4, 64)
    assert torch.allclose(tower.feature(images), reference(images), atol=1e-5)
