"""Which library a name belongs to: one line says it when the user does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDEN, refusal
from helpers.hf_models import VISION, write

from amp.towers.names import default_frame

NAMES = {
    "vit_giant_patch14_dinov2": "dinov2 (Meta's files) and timm know it: use --frame dinov2 or --frame timm",
    "vit_base_patch16_224.augreg_in21k": "timm knows it: use --frame timm",
    "EVA-CLIP-8B": "eva_clip knows it: use --frame eva_clip",
    "facebook/dinov2-base": "if it is a hub id, use --frame hf",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_another_library_says_which(name: str) -> None:
    message = refusal(lambda: default_frame(name))
    assert message.startswith((f"model.name: {name!r} is not a model of open_clip", f"model.name: {name!r} is neither"))
    assert message.endswith(NAMES[name])


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT/B-32", "EVA02-E-14-plus", str(GOLDEN / "tiny-clip.json"), "nonsense"]
)
def test_every_other_name_is_open_clips(name: str) -> None:
    assert default_frame(name) == "open_clip"


def _options(script: str, name: Any, golden_images: Path, tmp_path: Path) -> list[Any]:
    data = f"data: {{name: imagefolder, root: {golden_images}, batch_size: 32, num_workers: 0}}"
    output = f"output: {{dir: {tmp_path}/out}}"
    (tmp_path / "main_score.py.yaml").write_text(f"model: {{name: {name}}}\n{data}\n{output}")
    (tmp_path / "distill.py.yaml").write_text(
        f"teacher: {{name: {name}}}\nstudent: {{pretrained: {tmp_path}/pruned}}\n{data}\n{output}\n"
        "optim: {base_lr: 0.02, min_lr: 1e-4, epochs: 2}"
    )
    return {
        "eval/eval_knn.py": ["--model", name, "--dataset_root", golden_images],
        "eval/eval_efficiency.py": ["--model", name, "--meta"],
        "eval/eval_zsc.py": ["--model", name, "--dataset", "digit_scenes", "--dataset_root", tmp_path / "scenes"],
        "amp/towers/__main__.py": [name],
        "amp/checkpoint.py": ["convert", GOLDEN / "images.npz", tmp_path / "to", "--model", name],
    }.get(script, ["--config_file", tmp_path / f"{script}.yaml"])


SCRIPTS = {
    "main_score.py": ("model.name", "--frame"),
    "distill.py": ("teacher.name", "--frame"),
    "eval/eval_knn.py": ("--model", "--model_type"),
    "eval/eval_efficiency.py": ("--model", "--model_type"),
    "eval/eval_zsc.py": ("--model", "--model_type"),
    "amp/towers/__main__.py": ("model.name", "--frame"),
    "amp/checkpoint.py": ("model.name", "--model_type"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_names_its_option(
    script: str, golden_images: Path, tmp_path: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder of transformers, and of one that has the name of a model of open_clip."""
    key, option = SCRIPTS[script]
    source = Path(script).resolve()
    refused = {
        "towers": f"towers is a folder of transformers: use {option} hf",
        "ViT-B-32": "'ViT-B-32' is a model of open_clip, and a folder of transformers: "
        f"use {option} open_clip or {option} hf",
    }
    if "towers" in script:
        del refused["towers"]  # It finds the library.
    write(tmp_path / "pruned", "ViTModel", VISION)  # A student, which is missed before a teacher is looked for.
    for name, said in refused.items():
        write(tmp_path / name, "ViTModel", VISION)
        options = _options(script, name, golden_images, tmp_path)
        monkeypatch.chdir(tmp_path)
        code, _, err = call(source, *options)
        assert (code, err.splitlines()[-1]) == (2, f"error: {key}: {said}")


@pytest.mark.slow
def test_the_frame_decides_between_two(
    tmp_path: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "ViT-B-32", "ViTModel", VISION)
    script = Path("eval/eval_efficiency.py").resolve()
    monkeypatch.chdir(tmp_path)
    found = {}
    for frame in ("open_clip", "hf"):
        options = ["--model", "ViT-B-32", "--model_type", frame, "--meta", "--json", f"{frame}.json"]
        code, _, err = call(script, *options)
        assert code == 0, err
        found[frame] = json.loads((tmp_path / f"{frame}.json").read_text())["widths"]
    assert found == {"open_clip": [3072] * 12, "hf": [48] * 3}
