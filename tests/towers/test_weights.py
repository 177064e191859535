"""Models built without weights: what they take over from a file is what the library itself would have loaded."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from conftest import refusal
from helpers.hf_models import DINOV3, DUAL, VISION, write
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from amp.models.folder import load_tower, save_tower
from amp.settings.model import ModelSettings
from amp.towers import build_tower
from amp.towers.weights import check_complete, fill_randomly, without_weights


class Block(nn.Module):
    """A weight, and a mask that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("mask", torch.full((4,), 2.0), persistent=False)
        self.register_buffer("count", torch.zeros(1))


@pytest.mark.parametrize("inside", [True, False])
def test_takes_over_the_tensors_and_keeps_the_masks(inside: bool) -> None:
    state = Block().state_dict() | {"count": torch.ones(1)}
    with without_weights():
        block = Block().bfloat16()
        assert all(parameter.is_meta for parameter in block.parameters())
        if inside:
            block.load_state_dict(state)
    if not inside:
        block.load_state_dict(state)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.bfloat16}
    assert torch.equal(block.linear.weight, state["linear.weight"].bfloat16())
    assert torch.equal(block.mask, torch.full((4,), 2.0).bfloat16())
    assert block.count.item() == 1


def test_a_tensor_of_the_right_dtype_is_not_copied() -> None:
    state = Block().state_dict()
    with without_weights():
        block = Block()
    block.load_state_dict(state)
    assert block.linear.weight.data_ptr() == state["linear.weight"].data_ptr()


def test_masks_survive_a_move_to_the_meta_device() -> None:
    with without_weights():
        block = Block().to("meta")
    assert block.mask.tolist() == [2.0] * 4


def test_later_models_have_weights_again() -> None:
    with pytest.raises(KeyError), without_weights():
        raise KeyError
    assert not any(parameter.is_meta for parameter in Block().parameters())


def test_a_missing_tensor_is_named() -> None:
    state = Block().state_dict()
    del state["scale"]
    with without_weights():
        block = Block()
    block.load_state_dict(state, strict=False)
    assert refusal(lambda: check_complete(block, "a.pt")) == (
        "model.pretrained: a.pt: 1 tensors are missing, the first is scale"
    )
    fill_randomly(block)
    check_complete(block, "a.pt")
    assert torch.equal(block.linear.weight, state["linear.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zipped", [True, False])
def test_open_clip_loads_as_it_does_itself(
    tmp_path: Path, golden_model: ModelSettings, precision: str, zipped: bool
) -> None:
    own = build_tower(golden_model)
    path = tmp_path / "weights.pt"
    torch.save(own.model.state_dict(), path, _use_new_zipfile_serialization=zipped)
    tower = build_tower(golden_model.model_copy(update={"pretrained": str(path), "precision": precision}))
    open_clip.add_model_config(golden_model.name)
    theirs = open_clip.create_model(Path(golden_model.name).stem, pretrained=str(path), precision=precision)
    _assert_equal(tower.model, theirs)


@pytest.mark.parametrize("size", [28, 42])
def test_timm_loads_as_it_does_itself(tmp_path: Path, size: int) -> None:
    name = "eva02_tiny_patch14_224"
    kwargs = {"img_size": size, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}
    path = tmp_path / "weights.pt"
    torch.save(timm.create_model(name, **kwargs | {"img_size": 42}).state_dict(), path)
    tower = build_tower(ModelSettings(frame="timm", name=name, pretrained=str(path), kwargs=kwargs))
    overlay = {"file": str(path), "num_classes": 3, "custom_load": False}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    _assert_equal(tower.model, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("frame", "size"), [("open_clip", 48), ("timm", 48), ("dinov2", 42)])
def test_half_precision_is_loaded_at_another_size(
    tmp_path: Path, golden_model: ModelSettings, frame: Any, size: int
) -> None:
    """As fp32 is, but for the rounding of the file: 2^-11 of a number in fp16, 2^-8 in bf16."""
    names = {"open_clip": golden_model.name, "timm": "vit_tiny_patch16_224", "dinov2": "vit_small_patch14_dinov2"}
    kwargs = {} if frame == "open_clip" else {"depth": 2, "img_size": size * 2 // 3}
    settings = ModelSettings(frame=frame, name=names[frame], kwargs=kwargs)
    state = build_tower(settings).model.state_dict()
    loaded = []
    for number, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16)):
        path = tmp_path / f"{number}.pt"
        torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, path)
        changed = {"pretrained": str(path), "kwargs": {**kwargs, "img_size": size}}
        loaded.append(dict(build_tower(settings.model_copy(update=changed)).model.named_parameters()))
    for own, error in zip(loaded[1:], (2**-10, 2**-7), strict=True):  # the file's, and that of what timm resamples
        for name, tensor in loaded[0].items():
            assert own[name].dtype == torch.float32
            assert (own[name] - tensor).abs().max() <= error * tensor.abs().max() + 1e-7, name


FOLDERS = [
    ("timm", "beit_base_patch16_224", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    ("timm", "eva02_base_patch14_224", {"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    ("dinov2", "vit_small_patch16_dinov3", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    ("hf", "DINOv3ViTModel", {**VISION, **DINOV3}),
    ("hf", "BeitModel", {**VISION, "use_relative_position_bias": True}),
    ("hf", "CLIPModel", DUAL),
    ("open_clip", "golden", {}),
    ("open_clip", "tiny_eva.json", {"img_size": 28}),  # open_clip sets the size when the model is there
]


@pytest.mark.slow
@pytest.mark.parametrize(("frame", "name", "kwargs"), FOLDERS, ids=lambda value: str(value)[:24])
def test_a_folder_is_the_model_that_the_library_built(
    frame: Any, name: str, kwargs: dict[str, Any], tmp_path: Path, golden_model: ModelSettings
) -> None:
    """Weights, and what no file holds: rotary tables, indices of positions, masks."""
    settings = ModelSettings(frame=frame, name=name, kwargs=kwargs, precision="bf16")
    if frame == "hf":
        write(tmp_path / "hf", name, kwargs)
        settings = settings.model_copy(update={"name": str(tmp_path / "hf"), "kwargs": {}})
    elif name == "tiny_eva.json":
        tower = {"timm_model_name": "eva02_tiny_patch14_224", "timm_model_pretrained": False, "image_size": 56}
        text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
        tower |= {"timm_pool": "token", "timm_proj": None}
        described = {"embed_dim": 192, "vision_cfg": tower, "text_cfg": text, "custom_text": True}
        (tmp_path / name).write_text(json.dumps(described))
        settings = settings.model_copy(update={"name": str(tmp_path / name)})
    elif name == "golden":
        settings = golden_model.model_copy(update={"precision": "bf16"})
    tower = build_tower(settings)
    for slot in tower.slots:
        slot.keep(torch.arange(0, slot.hidden_width, 3))
    save_tower(tower, [[*range(0, 3 * width, 3)] for width in tower.widths], {}, tmp_path / "folder")
    loaded = load_tower(tmp_path / "folder")
    _assert_equal(loaded.model, tower.model)
    images = torch.randn(2, 3, tower.image_size, tower.image_size).to(tower.dtype)
    assert torch.equal(loaded.feature(images), tower.feature(images))
    assert not any(tensor.is_meta for tensor in (*loaded.model.parameters(), *loaded.model.buffers()))
    shapes = load_tower(tmp_path / "folder", "meta")
    assert (shapes.widths, shapes.read_tokens) == (tower.widths, tower.read_tokens)
    assert all(tensor.is_meta for tensor in (*shapes.model.parameters(), *shapes.model.buffers()))


def test_a_gpu_takes_the_tensors_over_itself() -> None:
    state = Block().state_dict()
    with without_weights(device="cuda:0"):
        block = Block().bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True):
        block.load_state_dict({name: torch.empty_like(tensor) for name, tensor in state.items()})
    assert {(p.device.type, p.dtype) for p in block.parameters()} == {("cuda", torch.bfloat16)}
    assert torch.equal(block.mask, torch.full((4,), 2.0).bfloat16())


def _assert_equal(model: nn.Module, other: nn.Module) -> None:
    for kind in ("named_parameters", "named_buffers"):
        own, theirs = dict(getattr(model, kind)()), dict(getattr(other, kind)())
        assert own.keys() == theirs.keys()
        for name, tensor in own.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_holds_what_the_cpu_does(golden_model: ModelSettings, precision: Any, tmp_path: Path) -> None:
    settings = golden_model.model_copy(update={"precision": precision})
    own = build_tower(settings)
    save_tower(own, [[*range(width)] for width in own.widths], {}, tmp_path / "folder")
    for tower in (build_tower(settings, "cuda"), load_tower(tmp_path / "folder", "cuda")):
        assert {tensor.device.type for tensor in (*tower.model.parameters(), *tower.model.buffers())} == {"cuda"}
        _assert_equal(tower.model.cpu(), own.model)
