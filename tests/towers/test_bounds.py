"""A model JSON that no library could build, or that asks for too much, is refused in one line before it is built."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN, refusal

from amp.settings.model import ModelSettings
from amp.towers import build_tower

ODD: list[tuple[str, Any, str]] = [
    ("vision_cfg.width", 0, "vision_cfg.width: 0; expected at least 1"),
    ("vision_cfg.layers", 0, "vision_cfg.layers: 0; expected at least 1"),
    ("vision_cfg.layers", 10**12, "vision_cfg.layers: 1000000000000 is not allowed: from 0 to 512"),
    ("vision_cfg.layers", True, "vision_cfg.layers: True; expected a number"),
    ("vision_cfg.head_width", 48, "vision_cfg.width: 64 is not a multiple of vision_cfg.head_width: 48"),
    ("vision_cfg.widht", 64, "vision_cfg.widht: not a setting of open_clip; did you mean 'width'?"),
    ("vision_cfg.mlp_ratio", float("nan"), "NaN is not a JSON number"),
    ("vision_cfg.mlp_ratio", 1e9, "mlp_ratio: 1000000000.0 is not allowed: from -1024 to 1024"),
    ("vision_cfg.mlp_ratio", 1e-9, "vision_cfg.mlp_ratio: 1e-09; expected at least 0.001"),
    ("vision_cfg.image_size", 10**5, "vision_cfg.image_size: 100000 is not allowed: from 1 to 8192"),
    ("vision_cfg.patch_size", 64, "does not take square RGB images of 32 px"),
    ("vision_cfg.timm_model_name", "hf-hub:a/b", "'hf-hub:a/b' would be fetched from elsewhere; not allowed"),
    ("vision_cfg.timm_model_name", "nonsense", "open_clip cannot build it (Unknown model (nonsense))"),
    ("vision_cfg.pool_type", "mean", "open_clip cannot build it (AssertionError)"),
    ("vision_cfg.act_kwargs", {"a": 1}, "unexpected keyword argument 'a'"),
    ("vision_cfg", [], "vision_cfg: []; expected an object {...}"),
    ("text_cfg", None, "text_cfg: null; expected an object {...}"),
    ("text_cfg.heads", 7, "embed_dim must be divisible by num_heads"),
    ("text_cfg.context_length", -3, "text_cfg.context_length: -3; expected at least 1"),
    ("text_cfg.vocab_size", 10**12, "text_cfg.vocab_size: 1000000000000 is not allowed: from -100000000 to 100000000"),
    ("text_cfg.hf_tokenizer_name", 5, "text_cfg.hf_tokenizer_name: 5; expected a string"),
    ("embed_dim", 0, "embed_dim: 0; expected a whole number, 1 or more"),
    ("quick_gelu", "yes", "quick_gelu: 'yes'; expected true or false"),
    ("layers", 3, "layers: not a setting of open_clip"),
]


@pytest.mark.parametrize(("key", "value", "words"), ODD, ids=[f"{key}={value}"[:40] for key, value, _ in ODD])
def test_an_odd_model_json_is_refused(key: str, value: Any, words: str, tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "tiny-clip.json").read_text())
    group, *last = key.split(".")
    if last:
        config[group][last[0]] = value
    else:
        config[group] = value
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(config))
    weights = str(GOLDEN / "tiny-clip.safetensors")
    for pretrained, device in ((None, "meta"), (None, "cpu"), (weights, "cpu")):
        model = ModelSettings(name=str(path), pretrained=pretrained)
        message = refusal(lambda model=model, device=device: build_tower(model, device))  # type: ignore[misc]
        assert message.startswith(f"model.name: {path}: ")
        assert words in message


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", '{"embed_dim": ' * 1000])
def test_a_file_that_is_no_model_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    assert refusal(lambda: build_tower(ModelSettings(name=str(path)))).startswith(f"model.name: {path}: ")


def test_a_deep_model_json_is_refused(tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "tiny-clip.json").read_text())
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": copy.copy(deep)}
    config["vision_cfg"]["act_kwargs"] = deep
    (tmp_path / "deep.json").write_text(json.dumps(config))
    assert "nested more than 20 deep" in refusal(lambda: build_tower(ModelSettings(name=str(tmp_path / "deep.json"))))
