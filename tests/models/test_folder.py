"""Laws of the model folder: it comes back bit for bit, describes itself, is whole or not there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusal
from helpers import hf_models
from helpers.model_folders import PROVENANCE, WIDTHS, prune
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import amp
from amp.models import folder as checkpoint
from amp.models.folder import load_tower, read_folder_config, save_tower
from amp.models.open import open_tower
from amp.models.published import write_published
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower, weights

pytestmark = pytest.mark.slow

FILES = ["README.md", "config.json", "model.safetensors", "open_clip_config.json"]


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        value.dtype == second[key].dtype and torch.equal(value, second[key]) for key, value in first.items()
    )


# ---------------------------------------------------------------- round trip


def test_a_tower_comes_back_bit_for_bit(tower: Tower, folder: Path) -> None:
    loaded = load_tower(folder)
    assert loaded.widths == WIDTHS
    assert same_state(loaded.model, tower.model)
    assert torch.equal(loaded.feature(images()), tower.feature(images()))
    assert torch.equal(loaded.model.encode_image(images()), tower.model.encode_image(images()))
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())
    for slot in loaded.slots:
        (in_projection,) = slot.in_projections
        assert in_projection.out_features == slot.out_projection.in_features == slot.hidden_width


def test_a_second_save_gives_the_same_bytes(tower: Tower, kept: list[list[int]], folder: Path, tmp_path: Path) -> None:
    save_tower(tower, kept, PROVENANCE, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    save_tower(load_tower(folder), kept, PROVENANCE, tmp_path / "loaded")
    assert contents(tmp_path / "loaded") == contents(folder)


def test_the_folder_holds_the_binding_files_and_what_they_promise(folder: Path, kept: list[list[int]]) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["widths"] == WIDTHS
    assert config["kept"] == kept
    assert config["provenance"] == PROVENANCE
    assert config["base"]["frame"] == "open_clip"
    assert config["base"]["name"].endswith("tiny-clip.json")
    tensors = load_file(folder / "model.safetensors")
    assert any(key.startswith("visual.") for key in tensors)
    assert "token_embedding.weight" in tensors, "the text tower is part of the whole model"
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


def test_a_tower_with_factory_arguments_and_a_transform_comes_back(tmp_path: Path, golden_model: ModelSettings) -> None:
    transform = {"crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    settings = ModelSettings.model_validate_json(
        json.dumps({"name": golden_model.name, "kwargs": {"img_size": 48}, "transform": transform})
    )
    tower = build_tower(settings)
    save_tower(tower, prune(tower), {}, tmp_path / "pruned")
    loaded = load_tower(tmp_path / "pruned")
    assert loaded.image_size == tower.image_size == 48
    assert same_state(loaded.model, tower.model)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    assert torch.equal(loaded.transform(image), tower.transform(image))
    assert not torch.equal(loaded.transform(image), build_tower(golden_model).transform(image.resize((48, 48))))
    images_BCHW = torch.randn(2, 3, 48, 48)
    assert torch.equal(loaded.feature(images_BCHW), tower.feature(images_BCHW))


def test_the_transform_is_the_one_that_was_saved(folder: Path, edit: Callable[..., None]) -> None:
    """A library's tag brings means of its own; without the tag they are in the folder alone."""
    edit([0.1, 0.2, 0.3], "base", "preprocess", "mean")
    edit([0.5, 0.25, 0.125], "base", "preprocess", "std")
    white_CHW = load_tower(folder).transform(Image.new("RGB", (50, 40), (255, 255, 255)))
    expected_C11 = torch.tensor([0.9 / 0.5, 0.8 / 0.25, 0.7 / 0.125]).view(3, 1, 1)
    torch.testing.assert_close(white_CHW, expected_C11.expand(3, 32, 32))


def test_precision_is_kept_or_overridden(
    folder: Path, tower: Tower, tmp_path: Path, golden_model: ModelSettings
) -> None:
    assert load_tower(folder).dtype == torch.float32

    low = load_tower(folder, precision="bf16")
    assert low.dtype == torch.bfloat16
    assert all(linear.weight.dtype == torch.bfloat16 for slot in low.slots for linear in slot.in_projections)
    assert low.widths == WIDTHS
    expected_BD, found_BD = tower.feature(images()), low.feature(images().bfloat16()).float()
    assert torch.nn.functional.cosine_similarity(found_BD, expected_BD).min() > 0.99

    saved = build_tower(golden_model.model_copy(update={"precision": "bf16"}))
    save_tower(saved, prune(saved), {}, tmp_path / "bf16")
    loaded = load_tower(tmp_path / "bf16")
    assert loaded.dtype == torch.bfloat16
    assert same_state(loaded.model, saved.model)
    high = load_tower(tmp_path / "bf16", precision="fp32")
    assert high.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in high.model.parameters())


def test_load_pruned_gives_a_model_a_transform_and_a_tokenizer_that_work(tower: Tower, folder: Path) -> None:
    model, transform, tokenizer = amp.load_pruned(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    pixels_CHW = transform(image)
    assert pixels_CHW.shape == (3, 32, 32)
    assert pixels_CHW.dtype == torch.float32
    assert torch.equal(pixels_CHW, tower.transform(image))
    tokens = tokenizer(["a digit"])
    assert tokens.shape == (1, 8), "the context length is the model's own"
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels_CHW[None]), tower.model.encode_image(pixels_CHW[None]))
        # The tiny text tower's vocabulary is smaller than the tokenizer's.
        assert model.encode_text(tokens.clamp(max=511)).shape == (1, 48)


def test_a_folder_describes_itself(golden_model: ModelSettings, tmp_path: Path) -> None:
    """The model JSON and the weights are gone, the folder is moved, the process and its folder are other ones."""
    source = tmp_path / "source" / "mine.json"
    source.parent.mkdir()
    shutil.copy(golden_model.name, source)
    tower = build_tower(golden_model.model_copy(update={"name": str(source)}))
    save_tower(tower, prune(tower), {}, tmp_path / "pruned")
    shutil.rmtree(source.parent)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pruned").rename(tmp_path / "elsewhere" / "moved")
    script = (
        "import sys, torch, amp; model, transform, tokenizer = amp.load_pruned('moved', trainable=False);"
        "images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0));"
        "torch.save(model.encode_image(images), 'features.pt')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "elsewhere", env=environment, check=True, timeout=120)
    found_BD = torch.load(tmp_path / "elsewhere" / "features.pt", weights_only=True)
    torch.testing.assert_close(found_BD, tower.model.encode_image(images()), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- atomic


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["before the weights", "amid the weights", "before the config"])
def test_an_interrupted_save_leaves_the_old_folder_whole_and_nothing_beside_it(
    tower: Tower,
    kept: list[list[int]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    error: type[BaseException],
) -> None:
    before = contents(folder)
    write = checkpoint.write_tensors

    def failing(path: Path, *args: Any) -> None:
        if at == "amid the weights":
            path.write_bytes(b"half")
        elif at == "before the config":
            write(path, *args)
        raise error

    monkeypatch.setattr(checkpoint, "write_tensors", failing)
    with torch.no_grad():
        tower.slots[0].out_projection.weight.add_(1.0)
    with pytest.raises(error):
        save_tower(tower, kept, {}, folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(error):
        save_tower(tower, kept, {}, folder.parent / "new")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_save_replaces_the_old_folder_but_what_somebody_put_there(
    tower: Tower, kept: list[list[int]], folder: Path
) -> None:
    (folder / "notes.txt").write_text("mine")
    with torch.no_grad():
        tower.slots[0].out_projection.weight.add_(1.0)
    save_tower(tower, kept, {"new": True}, folder)
    assert read_folder_config(folder).provenance == {"new": True}
    assert same_state(load_tower(folder).model, tower.model)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "notes.txt"])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_save_replaces_a_file_of_its_name(tower: Tower, kept: list[list[int]], tmp_path: Path) -> None:
    (tmp_path / "pruned").write_text("no folder")
    save_tower(tower, kept, {}, tmp_path / "pruned")
    assert same_state(load_tower(tmp_path / "pruned").model, tower.model)


@pytest.mark.parametrize("leftover", ["folder", "file"])
def test_a_killed_runs_leftovers_do_not_stop_the_next_run(
    tower: Tower, kept: list[list[int]], folder: Path, leftover: str
) -> None:
    """In a container the next run has the same process id, so it meets its own name."""
    with checkpoint.atomic(folder) as partial:
        name = partial.name
        partial.mkdir()
        (partial / "config.json").write_text("{}")
    stale = folder.with_name(name)
    if leftover == "folder":
        stale.mkdir()
        (stale / "half.safetensors").write_bytes(b"half")
    else:
        stale.write_bytes(b"half")
    save_tower(tower, kept, PROVENANCE, folder)
    assert same_state(load_tower(folder).model, tower.model)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_kept_neurons_must_be_those_of_the_tower(tower: Tower, kept: list[list[int]], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        save_tower(tower, [*kept[:4], [1, 2]], {}, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_the_folder_of_a_run_is_told_of_the_model_in_it(tower: Tower, tmp_path: Path) -> None:
    save_tower(tower, None, {}, tmp_path / "pruned")
    said = refusal(lambda: read_folder_config(tmp_path))
    assert said.endswith(f"did you mean {tmp_path}/pruned?")


def test_large_weights_are_told_of_before_they_are_read(
    folder: Path,
    golden_model: ModelSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of a pruned folder, of a published checkpoint, of a file and of a folder of transformers."""
    hf_models.write(tmp_path / "vit", "ViTModel", hf_models.VISION)
    published = tmp_path / "published.pt"
    write_published(load_tower(folder), published)
    opened: dict[str, Callable[[], object]] = {
        str(folder): lambda: amp.load_pruned(folder),
        str(published): lambda: open_tower(golden_model.name, "open_clip", str(published)),
        f"{golden_model.name} ({golden_model.pretrained})": lambda: build_tower(golden_model),
        str(tmp_path / "vit"): lambda: build_tower(hf_models.settings(tmp_path / "vit")),
    }
    for large in (False, True):
        monkeypatch.setattr(weights, "LARGE", 1000 if large else weights.LARGE)
        for told, load in opened.items():
            capsys.readouterr()
            load()
            assert capsys.readouterr().out == (f"loading {told}\n" if large else "")
    load_tower(folder, "meta")
    assert capsys.readouterr().out == ""
