"""`amp.save`: nothing of anybody else is replaced, and nothing is written that cannot be loaded again."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import refusal
from helpers.objects import TINY, equal, tiny_vit, weights_of
from torch import nn

import amp

IMAGES = torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def original() -> Any:
    return amp.prune(tiny_vit(), IMAGES, params=0.8)


@pytest.fixture
def model(original: Any) -> Any:
    """A copy, which is known as the model itself is."""
    return copy.deepcopy(original.model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("theirs", "theirs holds files other than a pruned model; give another folder"),
        ("notes.txt", "notes.txt is a file; give another path"),
        (" ", "' ' is not a folder"),
        (None, "None is not a folder"),
    ],
)
def test_what_is_there_stays(folder: Any, words: str, model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"mine": 1}')
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert words in refusal(lambda: amp.save(model, folder))
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_copy_is_saved_as_it_is_and_replaces_a_pruned_model(model: Any, original: Any, tmp_path: Path) -> None:
    amp.save(original, tmp_path / "folder")
    nn.init.zeros_(model.head.weight)
    amp.save(model, tmp_path / "folder")
    assert equal(weights_of(amp.load_pruned(tmp_path / "folder")[0]), weights_of(model))
    assert original.model.head.weight.any()


def test_a_head_of_other_classes_is_loaded_again(model: Any, tmp_path: Path) -> None:
    model.reset_classifier(7)
    amp.save(model, tmp_path / "folder")
    assert equal(weights_of(amp.load_pruned(tmp_path / "folder")[0]), weights_of(model))


def _own_head(model: Any) -> Any:
    model.head = nn.Sequential(nn.Linear(32, 5))
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_own_head, "was changed after pruning: head.0.weight has the shape [5, 32]"),
        (lambda model: pickle.loads(pickle.dumps(model)), "is not a result of amp.prune or amp.load_pruned"),
    ],
)
def test_what_could_not_be_loaded_is_not_written(
    change: Callable[[Any], Any], words: str, model: Any, tmp_path: Path
) -> None:
    assert words in refusal(lambda: amp.save(change(model), tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kwargs", "told"), [({"drop_path_rate": 0.1}, False), ({"init_values": 0.1}, True)])
def test_that_nothing_tells_how_it_was_built_is_said_at_once(
    kwargs: dict[str, float], told: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What only training sees changes no shape and no output."""
    model = timm.create_model("vit_tiny_patch16_224", **TINY, **kwargs)
    said = {"model": {"name": "vit_tiny_patch16_224", "kwargs": {**TINY, **kwargs}}}
    pruned = amp.prune(model, IMAGES, params=0.8, compensation="none")
    assert ("amp.save cannot write it" in capfd.readouterr().out) == told
    if told:
        pruned = amp.prune(model, IMAGES, params=0.8, compensation="none", **said)
        assert "amp.save cannot write it" not in capfd.readouterr().out
    amp.save(pruned, tmp_path / "folder")
    loaded = amp.load_pruned(tmp_path / "folder")[0]
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES[:2]), pruned.model.eval()(IMAGES[:2]))


def test_a_device_that_is_not_there_is_told(model: Any, tmp_path: Path) -> None:
    amp.save(model, tmp_path / "folder")
    assert "device: 'foo' is not available on this machine" in refusal(
        lambda: amp.load_pruned(tmp_path / "folder", "foo")
    )
