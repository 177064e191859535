"""timm's towers, DINOv2 among them: readouts, slices, folders, refusals, every script."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.meta_dinov2 import MetaDinov2
from PIL import Image
from torch import Tensor

from amp.errors import UserError
from amp.models.folder import load_tower, save_tower
from amp.settings.model import ModelSettings
from amp.towers import TokenReadout, Tower, after_last_block, build_tower

pytestmark = pytest.mark.slow

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
GATED = TINY | {"mlp_ratio": 5.5}
TOWERS = [
    ("timm", "vit_base_patch16_224", TINY, "plain", 256, 1),
    ("timm", "deit3_small_patch16_224", TINY, "plain", 256, 1),
    ("timm", "beit_base_patch16_224", TINY, "plain", 256, 1),
    ("timm", "beit3_base_patch16_224", TINY, "plain + norm", 256, 1),
    ("timm", "vit_so400m_patch14_siglip_224", TINY, "plain", 239, 0),
    ("timm", "eva02_base_patch14_224", TINY, "split gate + norm", 170, 1),
    ("timm", "eva02_tiny_patch14_224", TINY, "packed gate", 170, 1),
    ("timm", "aimv2_large_patch14_224", TINY, "split gate", 176, 0),
    ("dinov2", "vit_giant_patch14_dinov2", GATED, "packed gate", 176, 1),
    ("dinov2", "vit_giant_patch14_reg4_dinov2", GATED, "packed gate", 176, 5),
    ("dinov2", "vit_small_patch16_dinov3", TINY, "plain", 256, 5),
]


def _build(frame: Any, name: str, kwargs: dict[str, Any], **more: Any) -> Tower:
    return build_tower(ModelSettings(frame=frame, name=name, kwargs=kwargs, **more))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("frame", "name", "kwargs", "layout", "width", "prefix"), TOWERS, ids=[t[1] for t in TOWERS])
def test_tower(
    frame: str, name: str, kwargs: dict[str, Any], layout: str, width: int, prefix: int, images: Tensor, tmp_path: Path
) -> None:
    tower = _build(frame, name, kwargs)
    assert tower.widths == [width] * 3
    assert {slot.layout for slot in tower.slots} == {layout}
    assert tower.num_prefix_tokens == prefix
    assert TokenReadout(tower)(images).shape == (3, 16 + prefix, 64)
    visual: Any = tower.visual
    feature = tower.feature(images)
    if "dinov3" in name:  # timm's own pooling is the mean of the patch tokens.
        assert torch.equal(feature, visual.forward_features(images)[:, 0])
    else:
        assert torch.equal(visual.head(feature), tower.model(images))
    assert tower.transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)

    kept = [sorted(torch.randperm(width)[:k].tolist()) for k in (9, width // 2, width)]
    if "norm" not in layout:
        zeroed = _zeroed(tower, kept, images)
    for slot, indices in zip(tower.slots, kept, strict=True):
        slot.keep(torch.tensor(indices))
    if "norm" not in layout:
        assert torch.allclose(tower.feature(images), zeroed, atol=1e-5)
    save_tower(tower, kept, {}, tmp_path / "pruned")
    twin = load_tower(tmp_path / "pruned")
    assert torch.equal(twin.feature(images), tower.feature(images))
    assert twin.widths == [len(indices) for indices in kept]


def _zeroed(tower: Tower, kept: list[list[int]], images: Tensor) -> Tensor:
    handles = []
    for slot, indices in zip(tower.slots, kept, strict=True):
        mask = torch.zeros(slot.hidden_width)
        mask[indices] = 1
        handles.append(slot.out_projection.register_forward_pre_hook(lambda _, a, mask=mask: (a[0] * mask,)))
    feature = tower.feature(images)
    for handle in handles:
        handle.remove()
    return feature


def test_head_is_found_by_what_the_last_block_depends_on() -> None:
    settings = ModelSettings(frame="timm", name="vit_base_patch16_224", kwargs=TINY)
    assert after_last_block(build_tower(settings, "meta")) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("frame", "name", "words"),
    [
        ("timm", "vit_base_patch16_242", ["timm knows no 'vit_base_patch16_242'", "did you mean"]),
        ("timm", "swin_tiny_patch4_window7_224", ["SwinTransformer", "not a plain vision transformer"]),
        ("timm", "cait_s24_224", ["expected one list of transformer blocks", "blocks_token_only (2)"]),
        ("timm", "vit_small_patch16_18x2_224", ["blocks.0", "2 prunable MLPs"]),
        ("timm", "vit_base_patch16_xp_224", ["blocks.0", "0 prunable MLPs"]),
        ("dinov2", "vit_base_patch16_224", ["not a DINOv2 or DINOv3", "use the frame timm"]),
    ],
)
def test_what_cannot_be_pruned_is_refused_by_name(frame: Any, name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_tower(ModelSettings(frame=frame, name=name), "meta")
    for word in ["model.name", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("kwargs", [{"checkpoint_path": "x.pth"}, {"pretrained_cfg_overlay": {"file": "x"}}])
def test_arguments_that_load_files_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model.kwargs: .* not allowed"):
        _build("timm", "vit_base_patch16_224", kwargs)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224", **TINY).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"model.pretrained: .*weights.pth: not the weights of eva02_tiny"):
        _build("timm", "eva02_tiny_patch14_224", TINY, pretrained=str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match=r"model.pretrained: 'augregg' .* did you mean 'augreg"):
        _build("timm", "vit_tiny_patch16_224", TINY, pretrained="augregg")


@pytest.mark.parametrize(("frame", "name", "kwargs"), [TOWERS[0][:3], TOWERS[5][:3], TOWERS[8][:3]])
def test_score_prune_distil(
    frame: str, name: str, kwargs: dict[str, Any], prune_yaml: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    state = MetaDinov2().state if frame == "dinov2" else _build(frame, name, kwargs).model.state_dict()
    torch.save(state, tmp_path / "dense.pth")
    model = [f"model.{key}={value}" for key, value in (("name", name), ("pretrained", tmp_path / "dense.pth"))]
    settings = [*model, f"model.kwargs={json.dumps(kwargs)}", "prune.search_steps=2", "prune.entropy_increase=0.1"]
    words = [word for setting in settings for word in ("--set", setting)]
    code, _, err = call("main_score.py", "--config_file", prune_yaml, "--frame", frame, *words)
    assert code == 0, err
    prune_yaml.write_text(prune_yaml.read_text().replace("frame: open_clip, ", ""))
    code, _, err = call("main_prune.py", "--config_file", prune_yaml, *words)
    assert code == 0, err
    (tmp_path / "distill.yaml").write_text(f"""
teacher: {{frame: {frame}, name: {name}, pretrained: {tmp_path}/dense.pth, kwargs: {json.dumps(kwargs)}}}
student: {{pretrained: {tmp_path}/out/pruned}}
data: {{name: imagefolder, root: {_root(prune_yaml)}, batch_size: 16, num_workers: 0}}
optim: {{base_lr: 1e-2, min_lr: 1e-5, epochs: 3}}
output: {{dir: {tmp_path}/out}}
""")
    code, _, err = call("distill.py", "--config_file", tmp_path / "distill.yaml")
    assert code == 0, err
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert load_tower(tmp_path / "out" / "distilled").widths == load_tower(tmp_path / "out" / "pruned").widths
    words = ["--model", tmp_path / "out" / "distilled", "--dataset_root", _root(prune_yaml), "--num_workers", 0]
    code, out, err = call("eval/eval_knn.py", *words, "--output", tmp_path / "knn.json")
    assert code == 0, err
    assert "64 training images" in out


def _root(prune_yaml: Path) -> str:
    return prune_yaml.read_text().split("root: ")[1].split(",")[0]
