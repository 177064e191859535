"""EVA-CLIP: the files of the EVA repository, names, folders, and every script."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.model_folders import meta_tower
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.eva import Eva
from torch import Tensor

from amp.errors import UserError
from amp.models.folder import load_tower, save_tower
from amp.models.open import open_tower
from amp.settings.model import ModelSettings
from amp.towers import build_tower
from amp.towers.frames.eva_clip import from_released

pytestmark = pytest.mark.slow

TEXT = {"context_length": 8, "vocab_size": 512, "width": 16, "heads": 2, "layers": 1}
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 3}


def _eva(kwargs: dict[str, Any], **own: Any) -> Eva:
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith(("pretrained", "cache_dir"))}
    model = Eva(**{**SIZE, "global_pool": "token", **own, **kwargs})
    model.pretrained_cfg = model.default_cfg = {"input_size": (3, 32, 32), "num_classes": 0, "pool_size": None}
    return model


def tiny_eva_enormous(pretrained: bool = False, **kwargs: Any) -> Eva:
    return _eva(kwargs, use_post_norm=True)


def tiny_eva_large(pretrained: bool = False, **kwargs: Any) -> Eva:
    rotary = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4), "qkv_fused": False}
    return _eva(kwargs, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, **rotary)


register_model(tiny_eva_enormous)
register_model(tiny_eva_large)

# From timm's names to the EVA repository's.
RENAMED = {
    "mlp.fc1_g.": "mlp.w1.",
    "mlp.fc1_x.": "mlp.w2.",
    "mlp.norm.": "mlp.ffn_ln.",
    "attn.norm.": "attn.inner_attn_ln.",
    "q_proj.bias": "q_bias",
    "v_proj.bias": "v_bias",
}


def _json(folder: Path, trunk: str, proj: str | None = None, size: int = 32) -> str:
    path = folder / "EVA-tiny.json"
    vision = {"image_size": size, "timm_model_name": trunk, "timm_pool": "token", "timm_proj": proj}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
    path.write_text(json.dumps(config))
    return str(path)


def _released(state: dict[str, Tensor], large: bool) -> dict[str, Tensor]:
    """The same weights as the EVA repository names them."""
    released = {}
    for name, tensor in state.items():
        name = name.replace("visual.trunk.", "visual.")
        if large:
            name = name.replace("mlp.fc2.", "mlp.w3.")
            for timms, evas in RENAMED.items():
                name = name.replace(timms, evas)
        released[name] = tensor.clone()
    if large:
        for owner in ("visual.rope", "visual.blocks.0.attn.rope"):
            released |= {f"{owner}.freqs_cos": torch.ones(16, 16), f"{owner}.freqs_sin": torch.ones(16, 16)}
    return released


@pytest.mark.parametrize("trunk", ["tiny_eva_enormous", "tiny_eva_large"])
def test_a_released_file_is_the_model(trunk: str, tmp_path: Path) -> None:
    name = _json(tmp_path, trunk)
    dense = build_tower(ModelSettings(name=name))
    for parameter in dense.model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    state = dense.model.state_dict()
    released = _released(state, trunk == "tiny_eva_large")
    assert "visual.blocks.1.attn.q_bias" in released
    assert "visual.blocks.1.mlp.w1.weight" in released or trunk == "tiny_eva_enormous"
    assert {"visual.head.weight", "visual.head.bias"} < released.keys()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = torch.randint(0, 512, (2, 8), generator=torch.Generator().manual_seed(0))
    for file, weights in (("released.pt", released), ("ours.pt", state)):
        torch.save(weights, tmp_path / file)
        tower = open_tower(name, "eva_clip", str(tmp_path / file))
        assert torch.equal(tower.feature(images), dense.feature(images))
        assert torch.equal(tower.model.encode_image(images), dense.model.encode_image(images))
        assert torch.equal(tower.model.encode_text(texts), dense.model.encode_text(texts))
    message = refusal(lambda: open_tower(name, "open_clip", str(tmp_path / "released.pt")))
    assert f"released.pt: not the weights of {name}" in message
    assert message.endswith("; a file that the EVA repository released is read by the frame eva_clip")
    released.pop("visual.blocks.1.attn.v_bias")
    torch.save(released, tmp_path / "part.pt")
    with pytest.raises(UserError, match=r"model.pretrained: .*part.pt: "):
        build_tower(ModelSettings(frame="eva_clip", name=name, pretrained=str(tmp_path / "part.pt")))


@pytest.mark.parametrize("name", ["EVA-CLIP-8B", "EVA02-E-14-plus", "EVA02-L-14", "EVA01-g-14"])
def test_a_released_file_has_the_names_of_the_model(name: str) -> None:
    tower = meta_tower(ModelSettings(frame="eva_clip", name=name))
    ours, trunk = tower.model.state_dict(), tower.visual.trunk
    released = {key.replace("visual.head.proj.", "visual.head."): value for key, value in ours.items()}
    assert from_released(trunk, _released(released, name == "EVA02-L-14")).keys() == ours.keys()
    assert from_released(trunk, dict(ours)).keys() == ours.keys()


def test_eva_frame_takes_eva_only() -> None:
    with pytest.raises(UserError, match=r"model.name: 'ViT-B-32' is not an EVA-CLIP; .* open_clip"):
        build_tower(ModelSettings(frame="eva_clip", name="ViT-B-32"), "meta")


def test_a_pruned_eva_folder_remembers_its_frame(tmp_path: Path) -> None:
    path = _json(tmp_path, "test_vit", "linear", 160)
    tower = build_tower(ModelSettings(frame="eva_clip", name=path))
    kept = [list(range(8)) for _ in tower.slots]
    for slot in tower.slots:
        slot.keep(torch.arange(8))
    save_tower(tower, kept, {}, tmp_path / "pruned")
    assert load_tower(tmp_path / "pruned").base["frame"] == "eva_clip"


def test_score_prune_distil_and_knn_of_an_eva_tower(
    prune_yaml: Path, tmp_path: Path, golden_images: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    path = _json(tmp_path, "tiny_eva_large")
    dense = build_tower(ModelSettings(frame="eva_clip", name=path))
    save_file(dense.model.state_dict(), tmp_path / "dense.safetensors")
    settings = [f"model.name={path}", f"model.pretrained={tmp_path}/dense.safetensors", "model.frame=eva_clip"]
    words = [word for setting in [*settings, "prune.search_steps=2"] for word in ("--set", setting)]
    for script in ("main_score.py", "main_prune.py"):
        code, _, err = call(script, "--config_file", prune_yaml, *words)
        assert code == 0, err
    (tmp_path / "distill.yaml").write_text(f"""
teacher: {{frame: eva_clip, name: {path}, pretrained: {tmp_path}/dense.safetensors}}
student: {{pretrained: {tmp_path}/out/pruned}}
data: {{name: imagefolder, root: {golden_images}, batch_size: 32, num_workers: 0}}
optim: {{base_lr: 1e-3, min_lr: 1e-5, epochs: 2}}
output: {{dir: {tmp_path}/out}}
""")
    code, _, err = call("distill.py", "--config_file", tmp_path / "distill.yaml")
    assert code == 0, err
    folder = tmp_path / "out" / "distilled"
    assert load_tower(folder).base["frame"] == "eva_clip"
    words = ["--model", folder, "--dataset_root", golden_images, "--num_workers", 0, "--output", tmp_path / "knn.json"]
    code, out, err = call("eval/eval_knn.py", *words)
    assert (code, "64 training images" in out) == (0, True), err
