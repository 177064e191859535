"""Published vision checkpoints of each frame: load, evaluate, distil, convert both ways; what does not fit is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import GOLDEN, refusal
from helpers.numbered_images import write_images
from safetensors.torch import load_file, save_file
from torch import Tensor

from amp.models.folder import load_tower, save_tower
from amp.models.open import open_tower
from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower

pytestmark = pytest.mark.slow

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
State = dict[str, Tensor]
Model = tuple[ModelSettings, Tower, State]


def _as_openclip(tower: Tower) -> State:
    return tower.visual.state_dict()


def _as_eva(tower: Tower) -> State:
    names = {name: name.removeprefix("trunk.") for name in tower.visual.state_dict()} | {
        "head.proj.weight": "head.weight",
        "head.proj.bias": "head.bias",
    }
    return {names[name]: tensor for name, tensor in tower.visual.state_dict().items()}


def _as_meta(tower: Tower) -> State:
    state = {}
    for name, tensor in tower.visual.state_dict().items():
        own = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3").replace("reg_token", "register_tokens")
        state[own] = tensor
    if "register_tokens" in state:
        position_1TD = torch.randn(1, 1 + state["pos_embed"].shape[1], 64, generator=torch.Generator().manual_seed(1))
        state["cls_token"] = state["cls_token"] - position_1TD[:, :1]
        state["pos_embed"] = torch.cat([position_1TD[:, :1], state["pos_embed"]], dim=1)
    return {**state, "mask_token": torch.ones(1, 64)}


CASES: dict[str, tuple[str, str, Callable[[Tower], State]]] = {
    "open_clip": ("open_clip", "tiny.json", _as_openclip),
    "eva_clip": ("eva_clip", "EVA-tiny.json", _as_eva),
    "dinov2": ("dinov2", "vit_giant_patch14_dinov2", _as_meta),
    "dinov2 with registers": ("dinov2", "vit_giant_patch14_reg4_dinov2", _as_meta),
    "timm": ("timm", "vit_base_patch16_224", _as_openclip),
    "hf": ("hf", "dense", _as_openclip),
}


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    """How to build a dense model with its weights, the model sliced, and its published state dict."""
    frame, name, published = CASES[request.param]
    settings: dict[str, Any] = {"frame": frame, "name": name, "pretrained": None}
    if frame == "open_clip":
        config = json.loads((GOLDEN / "tiny-clip.json").read_text()) | {"text_cfg": TEXT}
        (tmp_path / name).write_text(json.dumps(config))
        settings["name"] = str(tmp_path / name)
    elif frame == "eva_clip":
        trunk = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
        config = {"embed_dim": 24, "vision_cfg": trunk, "text_cfg": TEXT, "custom_text": True}
        (tmp_path / name).write_text(json.dumps(config))
        settings["name"] = str(tmp_path / name)
    elif frame in ("dinov2", "timm"):
        # img_size alone can be typed in the converter, so the tiny size goes with the name.
        settings["kwargs"] = TINY | ({"mlp_ratio": 5.5} if frame == "dinov2" else {})
    elif frame == "hf":
        size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
        vit = transformers.ViTModel(transformers.ViTConfig(**size, image_size=32, patch_size=8))
        vit.save_pretrained(tmp_path / name)
        settings["name"] = str(tmp_path / name)
    dense = build_tower(ModelSettings(**settings))
    if frame == "dinov2":
        dense.visual.get_parameter("cls_token").normal_(generator=torch.Generator().manual_seed(0))
    if frame != "hf":
        torch.save(dense.model.state_dict(), tmp_path / "dense.pt")
        settings["pretrained"] = str(tmp_path / "dense.pt")
    for number, slot in enumerate(dense.slots):
        slot.keep(torch.arange(number, slot.hidden_width - 3 * number))
    return ModelSettings(**settings), dense, {name: tensor.clone() for name, tensor in published(dense).items()}


def test_loads_with_any_prefix(model: Model, tmp_path: Path) -> None:
    from amp.models.published import is_published, load_published

    settings, pruned, state = model
    meta = build_tower(settings, "meta")
    images = torch.randn(2, 3, pruned.image_size, pruned.image_size, generator=torch.Generator().manual_seed(0))
    found = pruned.feature(images)
    prefixes = ["", "model.", "visual.", "module.model.visual."]
    for prefix, suffix in zip(prefixes, [".pt", ".safetensors"] * 2, strict=True):
        path = tmp_path / f"published{suffix}"
        named = {prefix + name: tensor for name, tensor in state.items()}
        torch.save({"model": named}, path) if suffix == ".pt" else save_file(named, path)
        assert is_published(path, meta)
        tower = load_published(path, meta.base, None)
        assert tower.widths == pruned.widths
        torch.testing.assert_close(tower.feature(images), found, rtol=1e-5, atol=1e-6)
        assert tower.encode_text is None


def test_a_dense_file_is_not_taken_for_one(model: Model) -> None:
    from amp.models.published import is_published

    settings, *_ = model
    assert settings.pretrained is None or not is_published(settings.pretrained, build_tower(settings, "meta"))


def test_folder_and_checkpoint_convert_both_ways(model: Model, tmp_path: Path, call: Callable[..., Any]) -> None:
    settings, pruned, state = model
    torch.save(state, tmp_path / "published.pt")
    # Factory arguments cannot be typed here: a folder remembers them.
    if settings.kwargs:
        save_tower(pruned, None, {}, tmp_path / "pruned")
    else:
        words = ["--model", settings.name, "--model_type", settings.frame]
        words += ["--text_pretrained", settings.pretrained] if settings.frame in ("open_clip", "eva_clip") else []
        code, out, err = _convert(call, tmp_path / "published.pt", tmp_path / "pruned", *words)
        assert (code, f"wrote {tmp_path}/pruned" in out) == (0, True), err
    tower = load_tower(tmp_path / "pruned")
    expected = pruned.model.state_dict()
    assert expected.keys() == tower.model.state_dict().keys()
    assert all(torch.equal(expected[name], tensor) for name, tensor in tower.model.state_dict().items())
    for name in ("again.pt", "again.safetensors"):
        code, _, err = _convert(call, tmp_path / "pruned", tmp_path / name)
        assert code == 0, err
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    _assert_same(again, load_file(tmp_path / "again.safetensors"))
    if "register_tokens" not in state:
        _assert_same(again, state | ({"mask_token": torch.zeros(1, 64)} if "mask_token" in state else {}))
    if not settings.kwargs:
        code, _, err = _convert(call, tmp_path / "again.pt", tmp_path / "second", *words)
        assert code == 0, err
        _assert_same(load_file(tmp_path / "second/model.safetensors"), load_file(tmp_path / "pruned/model.safetensors"))


def _convert(call: Callable[..., Any], *words: object) -> tuple[int, str, str]:
    return call("amp/checkpoint.py", "convert", *words)


def _assert_same(state: State, other: State) -> None:
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def test_evaluates_and_distils(
    model: Model, tmp_path: Path, golden_images: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    settings, pruned, state = model
    torch.save(state, tmp_path / "published.pth")
    kwargs = json.dumps(settings.kwargs)
    pretrained = "null" if settings.pretrained is None else settings.pretrained
    (tmp_path / "distill.yaml").write_text(f"""
teacher: {{frame: {settings.frame}, name: {settings.name}, pretrained: {pretrained}, kwargs: {kwargs}}}
student: {{pretrained: {tmp_path}/published.pth}}
data: {{name: imagefolder, root: {golden_images}, batch_size: 32, num_workers: 0}}
optim: {{base_lr: 1e-3, min_lr: 1e-5, epochs: 2}}
output: {{dir: {tmp_path}/out}}
""")
    code, _, err = call("distill.py", "--config_file", tmp_path / "distill.yaml")
    assert code == 0, err
    distilled = load_tower(tmp_path / "out" / "distilled")
    assert distilled.widths == pruned.widths
    before, after = pruned.model.state_dict(), distilled.model.state_dict()
    outside = [name for name in before if name.startswith(("text", "token_embedding", "ln_final", "logit_scale"))]
    assert bool(outside) == (settings.frame in ("open_clip", "eva_clip"))
    assert all(torch.equal(before[name], after[name]) for name in outside)
    if not settings.kwargs:
        words = ["--model", settings.name, "--model_type", settings.frame, "--pretrained", tmp_path / "published.pth"]
        words += ["--dataset_root", golden_images, "--num_workers", 0, "--output", tmp_path / "knn.json"]
        code, out, err = call("eval/eval_knn.py", *words)
        assert (code, "64 training images" in out) == (0, True), err


@pytest.mark.parametrize("model", ["open_clip"], indirect=True)
def test_zero_shot_with_the_text_tower_of_the_dense_model(
    model: Model, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    settings, pruned, state = model
    torch.save({f"model.visual.{name}": tensor for name, tensor in state.items()}, tmp_path / "published.pt")
    save_tower(pruned, None, {}, tmp_path / "pruned")
    for label in ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"):
        write_images(tmp_path / "faces", *(f"test/{label}/{number}.jpg" for number in range(3)))
    faces = ["--dataset", "fer2013", "--dataset_root", tmp_path / "faces", "--num_workers", 0]
    of_file = ["--model", settings.name, "--pretrained", tmp_path / "published.pt"]
    asked = {
        "file": [*of_file, "--text_pretrained", settings.pretrained],
        "folder": ["--model", tmp_path / "pruned", "--save_clf", tmp_path / "clf.safetensors"],
    }
    metrics = {}
    for name, words in asked.items():
        code, _, err = call("eval/eval_zsc.py", *words, *faces, "--output", tmp_path / f"{name}.json")
        assert code == 0, err
        metrics[name] = json.loads((tmp_path / f"{name}.json").read_text())["metrics"]
    assert metrics["file"] == metrics["folder"]
    code, _, err = call("eval/eval_zsc.py", *of_file, *faces, "--output", tmp_path / "none.json")
    assert (code, "--text_pretrained" in err) == (2, True)


DAMAGES: dict[str, tuple[Callable[[State], State], str]] = {
    "wider": (
        lambda s: _resized(s, 2, 300),
        "block transformer.resblocks.2: has 300 neurons, more than the 256 of the dense model",
    ),
    "empty": (lambda s: _resized(s, 2, 0), "block transformer.resblocks.2: has no neuron"),
    "missing": (
        lambda s: {name: tensor for name, tensor in s.items() if ".1." not in name},
        "block transformer.resblocks.1: missing",
    ),
    "mixed": (
        lambda s: s | {"transformer.resblocks.3.mlp.c_fc.weight": s["transformer.resblocks.3.mlp.c_fc.weight"][:9]},
        "block transformer.resblocks.3: its tensors do not fit together",
    ),
    "more": (lambda s: s | {"transformer.resblocks.5.ln_1.bias": torch.ones(64)}, "not the vision tower of"),
    "less": (lambda s: {name: tensor for name, tensor in s.items() if name != "proj"}, "not the vision tower of"),
}


def _resized(state: State, block: int, width: int) -> State:
    mlp = f"transformer.resblocks.{block}.mlp"
    return state | {
        f"{mlp}.c_fc.weight": torch.ones(width, 64),
        f"{mlp}.c_fc.bias": torch.ones(width),
        f"{mlp}.c_proj.weight": torch.ones(64, width),
    }


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("model", ["open_clip"], indirect=True)
def test_what_does_not_fit_is_named(model: Model, damage: str, tmp_path: Path) -> None:
    settings, _, state = model
    change, expected = DAMAGES[damage]
    path = tmp_path / "published.pt"
    torch.save(change(state), path)
    message = refusal(lambda: open_tower(settings.name, None, str(path)))
    assert message.startswith(f"{path}: ")
    assert expected in message


@pytest.mark.parametrize("model", ["open_clip"], indirect=True)
def test_mistakes_of_the_converter(model: Model, tmp_path: Path, call: Callable[..., Any]) -> None:
    settings, pruned, state = model
    torch.save(state, tmp_path / "published.pt")
    save_tower(pruned, None, {}, tmp_path / "pruned")
    new = tmp_path / "new"
    mistakes = {
        "FROM": [tmp_path / "gone", new],
        "--model: missing": [tmp_path / "published.pt", new],
        "already exists": [tmp_path / "pruned", tmp_path / "published.pt"],
        "only allowed with a published": [tmp_path / "pruned", new, "--model", "x"],
        "expected a file name": [tmp_path / "pruned", new],
        "--text_pretrained: missing": [tmp_path / "published.pt", new, "--model", settings.name],
        "not a pruned vision tower": [settings.pretrained, new, "--model", settings.name],
        "--text_pretrained: 'nix'": [
            tmp_path / "published.pt",
            new,
            "--model",
            settings.name,
            "--text_pretrained",
            "nix",
        ],
    }
    for expected, words in mistakes.items():
        code, _, err = _convert(call, *words)
        assert (code, expected in err) == (2, True), err
        assert not new.exists()
