"""Laws of the model folder and of weights from elsewhere: nothing in them runs code."""

import contextlib
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal

import amp
from amp.models.folder import load_tower
from amp.models.open import open_tower
from amp.settings.model import ModelSettings


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = str(sentinel)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.sentinel,))


@pytest.mark.parametrize("kind", ["pickle", "torch file", "legacy torch file"])
def test_weights_that_are_a_pickle_do_not_run(folder: Path, tmp_path: Path, kind: str) -> None:
    evil = Evil(tmp_path / "sentinel")
    buffer = io.BytesIO()
    if kind == "pickle":
        pickle.dump(evil, buffer)
    else:
        torch.save({"visual.proj": evil}, buffer, _use_new_zipfile_serialization=kind == "torch file")
    (folder / "model.safetensors").write_bytes(buffer.getvalue())
    assert str(folder / "model.safetensors") in refusal(lambda: load_tower(folder))
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("name", ["evil.pt", "evil.bin", "evil.pth", "evil.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch file", "legacy torch file"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning:torch._weights_only_unpickler")
def test_a_checkpoint_that_wants_to_run_code_is_refused(
    golden_model: ModelSettings, tmp_path: Path, name: str, kind: str
) -> None:
    evil, path = Evil(tmp_path / "sentinel"), tmp_path / name
    if kind == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save({"state_dict": evil}, path, _use_new_zipfile_serialization=kind == "torch file")
    message = refusal(lambda: open_tower(golden_model.name, "open_clip", str(path)))
    assert str(path) in message
    assert "pretrained" in message
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("key", ["pretrained_image_path", "pretrained_text_path"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning:torch._weights_only_unpickler")
def test_a_config_cannot_make_the_library_unpickle(
    folder: Path, tmp_path: Path, edit: Callable[..., None], key: str
) -> None:
    """The library's factory takes a file to load and a switch that lets it run: a folder must reach neither."""
    evil = folder / "evil.pt"
    evil.write_bytes(pickle.dumps(Evil(tmp_path / "sentinel")))
    edit({key: str(evil), "weights_only": False}, "base", "kwargs")
    message = refusal(lambda: load_tower(folder))
    assert not (tmp_path / "sentinel").exists()
    assert "config.json" in message


def test_a_config_cannot_make_the_tokenizer_run_code(
    folder: Path, tmp_path: Path, edit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers runs a tokenizer's own Python file if told to trust it; a folder must not be able to tell it."""
    dynamic = pytest.importorskip("transformers.dynamic_module_utils")
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (folder / "config.json").with_name("tokenizer.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'sentinel')!r})\n"
        "from transformers import PreTrainedTokenizer\nclass Evil(PreTrainedTokenizer): pass\n"
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokenizer.Evil", None]}})
    )
    edit(str(folder), "base", "model_config", "text_cfg", "hf_tokenizer_name")
    edit({"trust_remote_code": True}, "base", "model_config", "text_cfg", "tokenizer_kwargs")
    with contextlib.suppress(Exception):
        amp.load_pruned(folder)
    assert not (tmp_path / "sentinel").exists()


def test_a_config_that_is_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_bytes(pickle.dumps(Evil(tmp_path / "sentinel")))
    assert str(folder / "config.json") in refusal(lambda: load_tower(folder))
    assert not (tmp_path / "sentinel").exists()
