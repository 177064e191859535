"""The code in docs/export.md runs as it stands there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from export.page import blocks, picture

import amp
from amp.export import compile_blocks, export_tower
from amp.towers import Tower

pytestmark = pytest.mark.slow


def test_the_files_are_run_as_the_page_says(tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    pictures = {"one.jpg": picture(90, 60), "two.jpg": picture(50, 70)}
    for name, image in pictures.items():
        image.save(name, quality=100, subsampling=0)
    for name in ("model.onnx", "model.pt2"):
        export_tower(tower, name)
    space: dict[str, Any] = {}
    found = []
    for code in blocks()[:3]:
        exec(code, space)
        found.append(space.get("vectors"))
    from PIL import Image

    images = torch.stack([tower.transform(Image.open(name)) for name in pictures])
    for vectors in found[1:]:
        torch.testing.assert_close(torch.as_tensor(vectors), tower.encode_image(images), rtol=0, atol=1e-4)


def test_blocks_are_compiled_as_the_page_says(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amp, "compile", compile_blocks, raising=False)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(blocks()[3], space)
    assert all(block._compiled_call_impl for block in space["model"].visual.transformer.resblocks)
