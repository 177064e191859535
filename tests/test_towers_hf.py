"""Hugging Face's towers: features as the library gives them, slicing, self-contained folders, the scripts, refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import refusal
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from amp.checkpoint import load_pruned, load_tower, save_tower
from amp.config import ModelSettings, TransformSettings
from amp.towers import TokenReadout, Tower, after_last_block, build_tower
from amp.towers.base import quiet

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
VISION = {**SIZE, "intermediate_size": 48}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
TEXT |= {"vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
DUAL = {"vision_config": VISION, "text_config": TEXT}
DINOV3 = {"num_register_tokens": 4}


def _by_library(model: Any, part: str, readout: str, images: Tensor) -> Tensor:
    output = (getattr(model, part) if part else model)(images)
    tokens = output.last_hidden_state
    return {"cls": tokens[:, 0], "mean": tokens.mean(1)}[readout] if readout != "pooled" else output.pooler_output


# Class, settings of its config, hidden width, layout, prefix tokens, where the library's own feature is.
CASES: list[tuple[str, dict[str, Any], int, str, int, str, str]] = [
    ("CLIPModel", DUAL, 48, "plain", 1, "vision_model", "pooled"),
    ("CLIPVisionModel", VISION, 48, "plain", 1, "", "pooled"),
    ("CLIPVisionModelWithProjection", VISION, 48, "plain", 1, "vision_model", "pooled"),
    ("CLIPForImageClassification", DUAL, 48, "plain", 1, "vision_model", "pooled"),
    ("MetaClip2VisionModel", VISION, 48, "plain", 1, "", "pooled"),
    ("MLCDVisionModel", VISION, 48, "plain", 1, "", "pooled"),
    ("SiglipModel", DUAL, 48, "plain", 0, "vision_model", "pooled"),
    ("SiglipVisionModel", VISION, 48, "plain", 0, "", "pooled"),
    ("SiglipVisionModel", {**VISION, "vision_use_head": False}, 48, "plain", 0, "", "mean"),
    ("Aimv2VisionModel", VISION, 48, "split gate", 0, "", "pooled"),
    ("Dinov2Model", SIZE, 128, "plain", 1, "", "cls"),
    ("Dinov2ForImageClassification", {**SIZE, "use_swiglu_ffn": True}, 88, "split gate", 1, "base_model", "cls"),
    ("Dinov2WithRegistersModel", SIZE, 128, "plain", 5, "", "cls"),
    ("DINOv3ViTModel", {**VISION, **DINOV3}, 48, "plain", 5, "", "cls"),
    ("DINOv3ViTModel", {**VISION, **DINOV3, "use_gated_mlp": True}, 48, "split gate", 5, "", "cls"),
    ("ViTModel", VISION, 48, "plain", 1, "", "cls"),
    ("ViTForImageClassification", VISION, 48, "plain", 1, "base_model", "cls"),
    ("ViTMSNModel", VISION, 48, "plain", 1, "", "cls"),
    ("DeiTModel", VISION, 48, "plain", 2, "", "cls"),
    ("BeitModel", {**VISION, "use_relative_position_bias": True}, 48, "plain", 1, "", "pooled"),
    ("IJepaModel", VISION, 48, "plain", 0, "", "mean"),
]


def _write(folder: Path, name: str, config: dict[str, Any], seed: int = 0) -> Any:
    """Saves a tiny model of a class with weights that make every part matter; returns it."""
    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = kind(kind.config_class(**config)).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    return model


def _settings(folder: Path, **more: Any) -> ModelSettings:
    return ModelSettings(frame="hf", name=str(folder), **more)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _halve(tower: Tower) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(w, generator=generator)[: w // 2].sort().values for w in tower.widths]


def _masked(tower: Tower, kept: list[Tensor], images: Tensor) -> Tensor:
    hooks = []
    for slot, kept_K in zip(tower.slots, kept, strict=True):
        mask = torch.zeros(slot.hidden_width).index_fill(0, kept_K, 1)
        hooks.append(slot.out_projection.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,)))
    feature = tower.feature(images)
    for hook in hooks:
        hook.remove()
    return feature


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3]}")
def test_family(case: tuple[Any, ...], tmp_path: Path, images: Tensor) -> None:
    name, config, width, layout, prefix, *by_library = case
    model = _write(tmp_path / "dense", name, config)
    tower = build_tower(_settings(tmp_path / "dense"))
    dense = tower.feature(images)
    assert type(tower.model) is type(model)
    assert torch.equal(dense, _by_library(model, *by_library, images))
    assert tower.widths == [width] * 3
    assert {slot.layout for slot in tower.slots} == {layout}
    assert tower.num_prefix_tokens == prefix
    assert TokenReadout(tower)(images).shape == (4, prefix + 16, 32)
    meta = build_tower(_settings(tmp_path / "dense"), "meta")
    assert {p.device.type for p in meta.model.parameters()} == {"meta"}
    assert meta.same_architecture(tower)
    head = after_last_block(meta)
    assert any("norm" in path for path in head)
    assert not any(path.startswith(block) for path in head for block in tower.blocks)

    kept = _halve(tower)
    masked = _masked(tower, kept, images)
    for slot, kept_K in zip(tower.slots, kept, strict=True):
        slot.keep(kept_K)
    sliced = tower.feature(images)
    assert (sliced - dense).abs().max() > 1e-3
    torch.testing.assert_close(sliced, masked, rtol=1e-4, atol=1e-5)

    save_tower(tower, [k.tolist() for k in kept], {}, tmp_path / "pruned")
    shutil.rmtree(tmp_path / "dense")
    loaded = load_tower(tmp_path / "pruned")
    assert torch.equal(loaded.feature(images), sliced)
    image = Image.effect_noise((50, 40), 64)
    assert torch.equal(loaded.transform(image), tower.transform(image))
    assert loaded.make_tokenizer() is None or name in ("CLIPModel", "SiglipModel", "CLIPForImageClassification")


def test_whole_model_is_kept_and_bf16_leaves_frequencies_alone(tmp_path: Path, images: Tensor) -> None:
    model = _write(tmp_path / "a", "ViTForImageClassification", {**VISION, "num_labels": 7})
    tower = build_tower(_settings(tmp_path / "a"))
    assert torch.equal(tower.model(images).logits, model(images).logits)
    _write(tmp_path / "b", "DINOv3ViTModel", {**VISION, **DINOV3})
    full, low = (build_tower(_settings(tmp_path / "b", precision=p)) for p in ("fp32", "bf16"))
    feature = low.feature(images.to(low.dtype))
    assert feature.dtype == torch.bfloat16
    assert torch.cosine_similarity(feature.float(), full.feature(images)).min() > 0.99
    assert torch.equal(low.model.rope_embeddings.inv_freq, full.model.rope_embeddings.inv_freq)


def test_transform_is_the_processors(tmp_path: Path) -> None:
    image = Image.effect_noise((53, 41), 64)
    crop = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    squash = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    for name, processor in (("CLIPVisionModel", crop), ("SiglipVisionModel", squash)):
        _write(tmp_path / name, name, VISION)
        processor.save_pretrained(tmp_path / name)
        tower = build_tower(_settings(tmp_path / name))
        expected = processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(tower.transform(image), expected, rtol=0, atol=1e-5)
    own = TransformSettings(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear")
    tower = build_tower(_settings(tmp_path / "CLIPVisionModel", transform=own))
    assert torch.equal(tower.transform(Image.new("RGB", (40, 40), "white")), torch.full((3, 32, 32), 2.0))
    assert tower.preprocess["interpolation"] == "bilinear"


def test_sizes(tmp_path: Path) -> None:
    _write(tmp_path / "any", "Dinov2Model", SIZE)
    larger = build_tower(_settings(tmp_path / "any", transform=TransformSettings(input_size=48)))
    image = larger.transform(Image.new("L", (60, 70)))
    assert TokenReadout(larger)(image[None]).shape == (1, 37, 32)
    _write(tmp_path / "fixed", "ViTModel", VISION)
    message = refusal(lambda: build_tower(_settings(tmp_path / "fixed", transform=TransformSettings(input_size=48))))
    assert "takes 32 px" in message
    rebuilt = build_tower(_settings(tmp_path / "fixed", kwargs={"img_size": 64}), "meta")
    assert rebuilt.image_size == 64
    message = refusal(lambda: build_tower(_settings(tmp_path / "fixed", kwargs={"img_size": 64})))
    assert "not the weights of" in message


def test_weights_may_come_from_another_folder_or_nowhere(tmp_path: Path, images: Tensor) -> None:
    _write(tmp_path / "a", "ViTModel", VISION)
    other = _write(tmp_path / "b", "ViTModel", VISION, seed=1)
    tower = build_tower(_settings(tmp_path / "a", pretrained=str(tmp_path / "b")))
    assert torch.equal(tower.feature(images), _by_library(other, "", "cls", images))
    (tmp_path / "a" / "model.safetensors").unlink()
    first, second = (build_tower(_settings(tmp_path / "a")) for _ in range(2))
    assert torch.equal(first.feature(images), second.feature(images))


def test_tokenizer_is_read_from_the_folder_when_called(tmp_path: Path) -> None:
    _write(tmp_path / "dense", "CLIPModel", DUAL)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 2, "a</w>": 3, "cat</w>": 4}
    transformers.CLIPTokenizer(vocab=words, merges=[]).save_pretrained(tmp_path / "dense")
    tower = build_tower(_settings(tmp_path / "dense"))
    assert tower.make_tokenizer()(["a", "a a a a a a a a a a"]).shape == (2, 8)
    save_tower(tower, [list(range(48))] * 3, {}, tmp_path / "pruned")
    shutil.rmtree(tmp_path / "dense")
    model, _, tokenizer = load_pruned(tmp_path / "pruned")
    assert isinstance(model, transformers.CLIPModel)
    assert "its tokenizer cannot be read" in refusal(lambda: tokenizer(["a"]))


@pytest.mark.parametrize(
    ("name", "config"),
    [("ViTForImageClassification", VISION), ("Dinov2Model", {**SIZE, "use_swiglu_ffn": True})],
)
def test_scripts(
    name: str, config: dict[str, Any], tmp_path: Path, golden_images: Path, call: Callable[..., Any]
) -> None:
    _write(tmp_path / "dense", name, config)
    data = f"name: imagefolder, root: {golden_images}, num_workers: 0"
    prune, distill = tmp_path / "prune.yaml", tmp_path / "distill.yaml"
    prune.write_text(f"""
model: {{name: {tmp_path}/dense}}
data: {{{data}, batch_size: 32, shuffle: false}}
prune: {{entropy_increase: 1e-2, search_steps: 2}}
output: {{dir: {tmp_path}/out}}
""")
    distill.write_text(f"""
teacher: {{frame: hf, name: {tmp_path}/dense}}
student: {{pretrained: {tmp_path}/out/pruned}}
data: {{{data}, batch_size: 32, augment: none}}
optim: {{base_lr: 0.02, min_lr: 1e-4, epochs: 1, warmup_epochs: 0}}
output: {{dir: {tmp_path}/out}}
""")
    runs = [("main_score.py", prune, "--frame", "hf"), ("main_prune.py", prune), ("distill.py", distill)]
    for script, yaml, *words in runs:
        code, _, err = call(script, "--config_file", yaml, *words)
        assert code == 0, err
    widths = json.loads((tmp_path / "out" / "prune.json").read_text())["widths"]
    model, transform, tokenizer = load_pruned(tmp_path / "out" / "distilled")
    assert [slot.hidden_width for slot in load_tower(tmp_path / "out" / "distilled").slots] == widths
    assert type(model).__name__ == name
    assert model(transform(Image.new("RGB", (40, 50)))[None])[0].isfinite().all()
    assert tokenizer is None


class _Malice:
    """Unpickled, it writes a file where the test looks."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sentinel"),)


def test_bad_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "dense", "ViTModel", VISION)
    _write(tmp_path / "wider", "ViTModel", {**VISION, "intermediate_size": 64})
    _write(tmp_path / "other", "CLIPVisionModel", VISION)
    for name in ("empty", "malice", "cut"):
        (tmp_path / name).mkdir()
    torch.save({"weight": _Malice()}, tmp_path / "malice" / "pytorch_model.bin")
    whole = (tmp_path / "dense" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[:1000])
    expected = {"wider": "not the weights of", "other": "not the weights of", "empty": "holds none of"}
    expected |= {"malice": "run code", "cut": "cannot be read", "gone": "neither a folder"}
    for name, words in expected.items():
        settings = _settings(tmp_path / "dense", pretrained=str(tmp_path / name))
        message = refusal(lambda settings=settings: build_tower(settings))  # type: ignore[misc]
        assert message.startswith("model.pretrained: ")
        assert words in message
    assert not (tmp_path / "sentinel").exists()


def test_bad_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    remote = {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    configs: dict[str, tuple[dict[str, Any], str]] = {
        "text": ({"model_type": "bert"}, "'bert' is none of the supported"),
        "naflex": ({"model_type": "siglip2"}, "NaFlex"),
        "swin": ({"model_type": "swin"}, "hierarchical"),
        "mae": ({"model_type": "vit_mae"}, "patches at random"),
        "nonsense": ({"model_type": "nonsense"}, "no config of"),
        "remote": ({"model_type": "mine", **remote}, "no config of"),
        "class": ({"model_type": "vit", "architectures": ["is_torch_available"]}, "'is_torch_available' is no vit"),
        "mixed": ({"model_type": "vit", "architectures": ["BertModel"]}, "'BertModel' is no vit"),
        "maps": ({"model_type": "dinov2", "architectures": ["Dinov2Backbone"]}, "'Dinov2Backbone' is no dinov2"),
        "quantised": ({"model_type": "vit", "quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        "oblong": ({"model_type": "vit", "image_size": [32, 64]}, "only square"),
    }
    expected = {"nobody/nothing": "no config of a transformers model", str(tmp_path / "gone"): "neither a folder nor"}
    expected[str(tmp_path / "empty")] = "no config.json"
    for name, (config, words) in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        expected[str(tmp_path / name)] = words
    (tmp_path / "remote" / "code.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')")
    for source, words in expected.items():
        message = refusal(lambda source=source: build_tower(_settings(Path(source)), "meta"))  # type: ignore[misc]
        assert message.startswith("model.name: ")
        assert words in message
    assert not (tmp_path / "sentinel").exists()


def test_unknown_kwargs_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, "ViTModel", VISION)
    for key in ("num_hiden_layers", "auto_map", "model_type"):
        message = refusal(lambda key=key: build_tower(_settings(tmp_path, kwargs={key: 1})))  # type: ignore[misc]
        assert message.startswith(f"model.kwargs: {key}: ")
    shallow = build_tower(_settings(tmp_path, kwargs={"num_hidden_layers": 2}), "meta")
    assert shallow.widths == [48, 48]
