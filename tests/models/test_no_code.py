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
from amp.errors import UserError
from amp.models.folder import load_tower
from amp.models.open import open_tower
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = str(sentinel)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.sentinel,))


@pytest.mark.slow
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


@pytest.mark.slow
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


def _remote_code(folder: Path, sentinel: Path, kind: str) -> None:
    """A folder of transformers whose own Python file would run if it were trusted."""
    folder.mkdir()
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(sentinel)!r})\n")
    auto_map = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoTokenizer": ["code.T", None]}
    config = {"model_type": kind, "auto_map": auto_map, "trust_remote_code": True, "custom_pipelines": {"x": "code.P"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", "auto_map": auto_map}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoImageProcessor": "code.I"}}))


@pytest.fixture
def sentinel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where code that ran would have left its mark."""
    dynamic = pytest.importorskip("transformers.dynamic_module_utils")
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("builtins.input", lambda *words: "y")  # Whoever asks the user would be told to go on.
    return tmp_path / "sentinel"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mine", "vit", "clip"])
def test_the_own_code_of_a_transformers_folder_does_not_run(tmp_path: Path, sentinel: Path, kind: str) -> None:
    _remote_code(tmp_path / "model", sentinel, kind)
    for device in ("meta", "cpu"):
        with contextlib.suppress(UserError):
            tower = build_tower(ModelSettings(frame="hf", name=str(tmp_path / "model")), device)
            if tokenizer := tower.make_tokenizer():
                tokenizer(["a"])
    assert not sentinel.exists()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["hf_model_name", "hf_tokenizer_name", "both"])
def test_the_own_code_of_a_text_tower_does_not_run(tmp_path: Path, sentinel: Path, key: str, tower: Tower) -> None:
    """open_clip hands a text tower's folder to transformers, which asks at the terminal whether its code may run."""
    _remote_code(tmp_path / "text", sentinel, "mine")
    config = json.loads(Path(tower.base["name"]).read_text())
    for own in ("hf_model_name", "hf_tokenizer_name") if key == "both" else (key,):
        config["text_cfg"][own] = str(tmp_path / "text")
    (tmp_path / "model.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        build_tower(ModelSettings(name=str(tmp_path / "model.json"))).make_tokenizer()(["a"])
    assert not sentinel.exists()


@pytest.mark.parametrize("scheme", ["hf-hub:a/b", "hf_hub:a/b", "local-dir:{}"])
@pytest.mark.parametrize("frame", ["timm", "open_clip", "dinov2", "eva_clip"])
def test_names_that_would_fetch_a_model_from_elsewhere_are_refused(
    frame: str, scheme: str, tmp_path: Path, sentinel: Path
) -> None:
    _remote_code(tmp_path / "model", sentinel, "mine")
    model = ModelSettings(frame=frame, name=scheme.format(tmp_path / "model"))
    assert refusal(lambda: build_tower(model, "meta")).startswith("model.name: ")
    assert not sentinel.exists()


def test_a_folder_is_loaded_without_the_internet(
    folder: Path, edit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that names a tokenizer of the hub, read when it is called, or a text tower of it, which is refused."""

    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    edit("google-t5/t5-small", "base", "model_config", "text_cfg", "hf_tokenizer_name")
    amp.load_pruned(folder)
    edit("google-t5/t5-small", "base", "model_config", "text_cfg", "hf_model_name")
    assert "network" not in refusal(lambda: load_tower(folder))
    edit("hf-hub:a/b", "base", "model_config", "vision_cfg", "timm_model_name")
    assert "would be fetched from elsewhere" in refusal(lambda: load_tower(folder))
