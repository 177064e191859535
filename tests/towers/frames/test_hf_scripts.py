"""Hugging Face's towers through the scripts: score, prune, distil, evaluate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hf_models import DUAL, SIZE, VISION, add_clip_tokenizer, add_siglip_tokenizer, write
from PIL import Image
from safetensors.torch import load_file

from amp.data.scenes import build_scenes
from amp.models.folder import load_tower

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


MODELS: list[tuple[str, dict[str, Any], Callable[[Path], None] | None]] = [
    ("ViTForImageClassification", VISION, None),
    ("Dinov2Model", {**SIZE, "use_swiglu_ffn": True}, None),
    ("Data2VecVisionForImageClassification", {**VISION, "use_relative_position_bias": True}, None),
    ("CLIPModel", DUAL, add_clip_tokenizer),
    ("SiglipModel", DUAL, add_siglip_tokenizer),
]


@pytest.mark.parametrize(("name", "config", "add_tokenizer"), MODELS, ids=[name for name, *_ in MODELS])
def test_score_prune_distil_evaluate(
    name: str, config: dict[str, Any], add_tokenizer: Any, tmp_path: Path, golden_images: Path, call: Call
) -> None:
    write(tmp_path / "dense", name, config)
    if add_tokenizer:
        add_tokenizer(tmp_path / "dense")
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
    tower = load_tower(tmp_path / "out" / "distilled")
    assert tower.widths == widths
    assert type(tower.model).__name__ == name
    assert tower.feature(tower.transform(Image.new("RGB", (40, 50)))[None]).isfinite().all()

    dense, distilled = [tmp_path / "dense", "--model_type", "hf"], [tmp_path / "out" / "distilled"]
    if add_tokenizer:
        _check_zero_shot([dense, distilled], tmp_path, call)
    else:
        _check_knn([dense, distilled], golden_images, tmp_path, call)


def _check_knn(models: list[list[Any]], images: Path, tmp_path: Path, call: Call) -> None:
    for index, words in enumerate(models):
        options = ["--dataset_root", images, "--num_workers", 0, "--output", tmp_path / f"{index}.json"]
        code, out, err = call("eval/eval_knn.py", "--model", *words, *options)
        assert code == 0, err
        assert "64 training images" in out


def _check_zero_shot(models: list[list[Any]], tmp_path: Path, call: Call) -> None:
    build_scenes(tmp_path / "scenes", num_train=2, num_val=2, num_test=60, num_pairs=12)
    classifiers = []
    for index, words in enumerate(models):
        for task in ("zeroshot_classification", "zeroshot_retrieval"):
            result = tmp_path / f"{index}_{task}.json"
            options = ["--task", task, "--dataset", "digit_scenes", "--dataset_root", tmp_path / "scenes"]
            options += ["--num_workers", 0, "--output", result]
            options += ["--save_clf", tmp_path / f"{index}.safetensors"] if task == "zeroshot_classification" else []
            code, _, err = call("eval/eval_zsc.py", "--model", *words, *options)
            assert code == 0, err
            assert json.loads(result.read_text())["num_images"] == (60 if task == "zeroshot_classification" else 12)
        classifiers.append(load_file(tmp_path / f"{index}.safetensors")["classifier"])
    torch.testing.assert_close(*classifiers, rtol=0, atol=1e-6)  # The text tower is not pruned.
