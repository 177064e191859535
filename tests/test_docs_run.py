"""What the pages show runs as it stands: Python, with tiny models for missing weights; commands without a mark."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from conftest import ROOT
from helpers import hf_models
from helpers.model_folders import PROVENANCE
from pages import PAGES, blocks, commands, picture, run, shown
from PIL import Image
from test_docs import INSTALL

import amp
from amp.api import distill
from amp.commands import choose
from amp.export import export_tower
from amp.models.folder import save_tower
from amp.registry import COMMANDS
from amp.run.console import run_script
from amp.settings.prune import RECOMMENDED
from amp.towers import Tower

pytestmark = pytest.mark.slow


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the refit, so that what is shown runs in a moment."""
    monkeypatch.setitem(RECOMMENDED, "prune", {**RECOMMENDED["prune"], "refit_steps": 2})  # type: ignore[arg-type]


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("page", ["docs/in_memory.md", "examples/quickstart.ipynb"])
def test_models_in_memory_are_pruned_as_shown(page: str, elsewhere: Path) -> None:
    run(blocks(page, "python") if page.endswith(".md") else shown(ROOT / page), {})
    assert (elsewhere / "trained" / "model.safetensors").is_file()


@pytest.fixture
def stand_ins(elsewhere: Path, golden_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models in the place of published ones and of the reader's own, and a folder `photos`."""
    shutil.copytree(golden_images / "train" / "scene", elsewhere / "photos")
    shutil.copy(elsewhere / "photos" / "0000.png", elsewhere / "photos" / "one.png")
    short = {**RECOMMENDED["data"], "batch_size": 16, "num_workers": 0}
    monkeypatch.setitem(RECOMMENDED, "data", short)  # type: ignore[arg-type]
    few = {"steps": 2, "data": {"batch_size": 16, "num_workers": 0}}
    monkeypatch.setattr(amp, "distill", lambda *given, **_: distill(*given, **few), raising=False)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}
    create, clip = timm.create_model, open_clip.create_model_and_transforms
    vision = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 48, "head_width": 16}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (elsewhere / "stand-in.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(elsewhere / "stand-in.json")
    hf = hf_models.write(elsewhere / "hf", "ViTModel", {**hf_models.VISION, "intermediate_size": 128})
    monkeypatch.setattr(timm, "create_model", lambda name, **_: create("vit_tiny_patch16_224", **small))
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda name, pretrained: clip("stand-in"))
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda name: hf)


@pytest.mark.usefixtures("stand_ins", "few_steps")
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_each_library_is_pruned_as_shown(page: str, elsewhere: Path) -> None:
    for block in blocks(page, "python"):
        if "amp.prune" in block.code:
            run([block], {})
    assert len([*elsewhere.glob("*0/model.safetensors")]) == 3


def test_exported_files_are_run_as_shown(tower: Tower, elsewhere: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pictures = {"one.jpg": picture(90, 60), "two.jpg": picture(50, 70)}
    for name, image in pictures.items():
        image.save(name, quality=100, subsampling=0)
    for name in ("model.onnx", "model.pt2"):
        export_tower(tower, name)
    space: dict[str, Any] = {}
    found = []
    for block in blocks("docs/export.md", "python")[:3]:
        run([block], space)
        found.append(space.get("vectors"))
    images = torch.stack([tower.transform(Image.open(name)) for name in pictures])
    for vectors in found[1:]:
        torch.testing.assert_close(torch.as_tensor(vectors), tower.encode_image(images), rtol=0, atol=1e-4)


@pytest.fixture
def aligned_folder(tower: Tower, elsewhere: Path) -> Tower:
    """The golden network, sliced to multiples of 8, in out/pruned."""
    kept = [list(range(width)) for width in (8, 16, 24, 32, 64)]
    for slot, indices in zip(tower.slots, kept, strict=True):
        slot.keep(torch.tensor(indices))
    save_tower(tower, kept, PROVENANCE, elsewhere / "out" / "pruned")
    return tower


def test_a_folder_is_compiled_and_quantised_as_shown(aligned_folder: Tower) -> None:
    compiled, quantised = blocks("docs/export.md", "python")[3:]
    assert all(block._compiled_call_impl for block in run([compiled], {})["model"].visual.transformer.resblocks)
    side = aligned_folder.image_size
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3, side, side), dtype=np.float32))
    vectors = run([quantised], {"images": images})["vectors"]
    with torch.inference_mode():
        expected = aligned_folder.model.encode_image(images)
    assert not torch.equal(vectors, expected)
    assert torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.99


UNMARKED = [
    (block.place, line)
    for page in PAGES
    for block in blocks(page, "bash")
    if not block.needs
    for line in commands(block.code)
    if shlex.split(line)[0] not in (*INSTALL, "make") and "pytest" not in line
]


@pytest.mark.parametrize(("place", "line"), UNMARKED, ids=[f"{place}: {line}" for place, line in UNMARKED])
def test_commands_without_a_mark_run(
    place: str, line: str, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = shlex.split(line)
    if program == "python":
        code, _, err = call(*words)
        assert code == 0, err
    else:
        assert program == "amp", line
        monkeypatch.setattr(sys, "argv", [program, *words])
        with pytest.raises(SystemExit) as ended:
            run_script(lambda: _leave(choose("amp", COMMANDS, "")))
        assert ended.value.code == 0


def _leave(_: None) -> None:
    sys.exit(0)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
