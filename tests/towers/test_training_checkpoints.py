"""Training checkpoints and fine-tuned files: one set of weights for all, the file's own classifier, nothing unread."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import refusal
from torch import Tensor

from amp.models.folder import load_tower, save_tower
from amp.models.open import open_tower
from amp.models.published import load_published
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
NAME = "vit_tiny_patch16_224"


def _pair(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    last = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return last, {key: tensor * 1.5 for key, tensor in last.items()}


@pytest.mark.slow
@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema_state_dict"])
def test_open_clip_takes_the_last_step_and_says_so(
    golden_model: ModelSettings, tower: Tower, tmp_path: Path, key: str
) -> None:
    last, averaged = _pair(tower.model)
    path = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "state_dict": last, key: averaged}, path)
    dense = build_tower(golden_model.model_copy(update={"pretrained": str(path)}))
    assert torch.equal(dense.visual.get_parameter("proj"), last["visual.proj"])
    assert dense.notes == (f"weights: using 'state_dict' of {path} instead of {key!r}",)
    bare = tmp_path / "vision.pt"
    visual = [{k.removeprefix("visual."): v for k, v in s.items() if k.startswith("visual.")} for s in (last, averaged)]
    torch.save({"state_dict": visual[0], key: visual[1]}, bare)
    published = load_published(bare, dense.base, None)
    assert torch.equal(published.visual.get_parameter("proj"), last["visual.proj"])


def test_timm_takes_the_averaged_weights_dense_and_published(tmp_path: Path) -> None:
    last, averaged = _pair(timm.create_model(NAME, **TINY))
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": last, "state_dict_ema": averaged}, path)
    model = ModelSettings(frame="timm", name=NAME, kwargs=TINY, pretrained=str(path))
    dense = build_tower(model)
    assert torch.equal(dense.visual.get_parameter("cls_token"), averaged["cls_token"])
    assert dense.notes[0] == f"weights: using 'state_dict_ema' of {path} instead of 'state_dict'"
    published = load_published(path, dense.base, None)
    assert torch.equal(published.visual.get_parameter("cls_token"), averaged["cls_token"])


def test_a_classifier_of_other_classes_is_the_files(tmp_path: Path) -> None:
    torch.save(timm.create_model(NAME, num_classes=10, **TINY).state_dict(), tmp_path / "ten.pth")
    model = ModelSettings(frame="timm", name=NAME, kwargs=TINY, pretrained=str(tmp_path / "ten.pth"))
    tower = build_tower(model)
    assert tower.model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    save_tower(tower, [list(range(256))] * 2, {}, tmp_path / "pruned")
    assert load_tower(tmp_path / "pruned").model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("classes", [{}, {"num_classes": 0}, {"num_classes": 1000}])
def test_a_deeper_file_is_refused_whatever_the_classes(tmp_path: Path, classes: dict[str, int]) -> None:
    path = tmp_path / "deep.pth"
    torch.save(timm.create_model(NAME, **{**TINY, "depth": 3}).state_dict(), path)
    model = ModelSettings(frame="timm", name=NAME, kwargs=TINY | classes, pretrained=str(path))
    assert refusal(lambda: build_tower(model)).startswith(f"model.pretrained: {path}: not the weights of {NAME}")
    headless = build_tower(model.model_copy(update={"kwargs": TINY | {"depth": 3, "num_classes": 0}}))
    assert headless.model(torch.zeros(1, 3, 32, 32)).shape == (1, 64)


@pytest.mark.slow
def test_a_pickled_model_is_told_the_way_out(golden_model: ModelSettings, tower: Tower, tmp_path: Path) -> None:
    path = str(tmp_path / "model.pt")
    torch.save(tower.model, path)
    for message in (
        refusal(lambda: build_tower(golden_model.model_copy(update={"pretrained": path}))),
        refusal(lambda: open_tower(golden_model.name, "open_clip", path)),
    ):
        assert message.startswith(f"model.pretrained: {path}: refused: it holds more than tensors")
        assert message.endswith("If it is a whole pickled model (torch.save(model)), save its state_dict() instead")
