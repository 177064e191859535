"""Folders and settings that Hugging Face's towers refuse, in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.hf_models import VISION, settings, write

from amp.towers import build_tower


class _Malice:
    """Unpickled, it writes a file where the test looks."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sentinel"),)


def test_bad_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "dense", "ViTModel", VISION)
    write(tmp_path / "wider", "ViTModel", {**VISION, "intermediate_size": 64})
    write(tmp_path / "other", "CLIPVisionModel", VISION)
    for name in ("empty", "malice", "cut"):
        (tmp_path / name).mkdir()
    torch.save({"weight": _Malice()}, tmp_path / "malice" / "pytorch_model.bin")
    whole = (tmp_path / "dense" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[:1000])
    expected = {"wider": "not the weights of", "other": "not the weights of", "empty": "holds none of"}
    expected |= {"malice": "run code", "cut": "cannot be read", "gone": "neither a folder"}
    for name, words in expected.items():
        asked = settings(tmp_path / "dense", pretrained=str(tmp_path / name))
        message = refusal(lambda asked=asked: build_tower(asked))  # type: ignore[misc]
        assert message.startswith("model.pretrained: ")
        assert words in message
    assert not (tmp_path / "sentinel").exists()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "ViTModel", VISION)
    (tmp_path / "model.safetensors").unlink()
    assert refusal(lambda: build_tower(settings(tmp_path))).startswith(
        f"model.pretrained: {tmp_path}: the folder holds"
    )
    assert build_tower(settings(tmp_path), "meta").widths == [48] * 3


def test_a_config_of_another_model_than_its_weights_is_refused(tmp_path: Path) -> None:
    """Fewer layers, another width, a layer scale fewer: nothing of a file may be left unread without a word."""
    for name, kind, key, value in (
        ("ViTModel", "ViTModel", "num_hidden_layers", 2),
        ("ViTModel", "ViTModel", "intermediate_size", 64),
        ("ViTModel", "ViTModel", "num_hidden_layers", 4),
        ("BeitModel", "BeitModel", "layer_scale_init_value", 0.0),
    ):
        folder = tmp_path / f"{kind}-{key}-{value}"
        write(folder, name, VISION)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        message = refusal(lambda folder=folder: build_tower(settings(folder)))  # type: ignore[misc]
        assert message.startswith(f"model.pretrained: {folder}: not the weights of ")


def test_a_head_that_the_model_has_not_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "whole", "ViTForImageClassification", VISION)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config | {"architectures": ["ViTModel"]}))
    build_tower(settings(tmp_path / "bare", pretrained=str(tmp_path / "whole")))


def test_dinov2_takes_images_of_another_size(tmp_path: Path) -> None:
    write(tmp_path, "Dinov2Model", VISION)
    tower = build_tower(settings(tmp_path, kwargs={"img_size": 64}))
    assert tower.image_size == 64
    assert tower.feature(torch.zeros(1, 3, 64, 64)).shape == (1, 32)


def test_bad_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    remote = {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    configs: dict[str, tuple[dict[str, Any], str]] = {
        "text": ({"model_type": "bert"}, "'bert' is not one of the supported"),
        "naflex": ({"model_type": "siglip2"}, "NaFlex"),
        "swin": ({"model_type": "swin"}, "hierarchical"),
        "mae": ({"model_type": "vit_mae"}, "patches at random"),
        "nonsense": ({"model_type": "nonsense"}, "not a transformers model"),
        "remote": ({"model_type": "mine", **remote}, "not a transformers model"),
        "class": ({"model_type": "vit", "architectures": ["is_torch_available"]}, "'is_torch_available' is not a vit"),
        "mixed": ({"model_type": "vit", "architectures": ["BertModel"]}, "'BertModel' is not a vit"),
        "maps": ({"model_type": "dinov2", "architectures": ["Dinov2Backbone"]}, "'Dinov2Backbone' is not a dinov2"),
        "quantised": ({"model_type": "vit", "quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        "oblong": ({"model_type": "vit", "image_size": [32, 64]}, "only square"),
    }
    expected = {"nobody/nothing": "not a transformers model", str(tmp_path / "gone"): "neither a folder nor"}
    expected[str(tmp_path / "empty")] = "no config.json"
    for name, (config, words) in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        expected[str(tmp_path / name)] = words
    (tmp_path / "remote" / "code.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')")
    for source, words in expected.items():
        message = refusal(lambda source=source: build_tower(settings(Path(source)), "meta"))  # type: ignore[misc]
        assert message.startswith("model.name: ")
        assert words in message
    assert not (tmp_path / "sentinel").exists()


def test_unknown_kwargs_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "ViTModel", VISION)
    for key in ("num_hiden_layers", "auto_map", "model_type"):
        message = refusal(lambda key=key: build_tower(settings(tmp_path, kwargs={key: 1})))  # type: ignore[misc]
        assert message.startswith(f"model.kwargs: {key}: ")
    shallow = build_tower(settings(tmp_path, kwargs={"num_hidden_layers": 2}), "meta")
    assert shallow.widths == [48, 48]
