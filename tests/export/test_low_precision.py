"""A pruned model goes through another library's quantisation as docs/export.md says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from export.page import blocks
from helpers.model_folders import PROVENANCE

from amp.models import save_tower
from amp.towers import Tower

pytestmark = pytest.mark.slow


def test_int8_weights_as_the_page_says(tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = [list(range(width)) for width in (8, 16, 24, 32, 64)]
    for slot, indices in zip(tower.slots, kept, strict=True):
        slot.keep(torch.tensor(indices))
    save_tower(tower, kept, PROVENANCE, tmp_path / "out" / "pruned")
    (code,) = (block for block in blocks() if "quantize_" in block)
    images = torch.randn(4, 3, tower.image_size, tower.image_size, generator=torch.manual_seed(0))
    space: dict[str, Any] = {"images": images}
    exec(code, space)
    with torch.inference_mode():
        expected = tower.model.encode_image(images)
    assert not torch.equal(space["vectors"], expected)
    assert torch.nn.functional.cosine_similarity(space["vectors"], expected).min() > 0.99
