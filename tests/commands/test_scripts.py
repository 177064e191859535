"""The entry scripts as users run them: golden numbers, second runs, every bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from PIL import Image
from safetensors.torch import load_file, save_file

import amp

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


def _files(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def _check_golden(folder: Path, golden: dict[str, Any]) -> None:
    scores = load_file(folder / "scores.safetensors")
    for block, expected in enumerate(golden["score"]["scores_abs@15.0"]):
        score = scores[f"score.{block}"]
        assert score.dtype == torch.float32
        assert (score - torch.tensor(expected)).abs().max() <= 1e-4 * max(expected)
    record, run = json.loads((folder / "prune.json").read_text()), golden["runs"][0]
    assert record["widths"] == run["widths"]
    assert [probe[:2] for probe in record["probes"]] == [probe[:2] for probe in run["probes"]]
    assert [p[2] for p in record["probes"]] == pytest.approx([p[2] for p in run["probes"]], abs=1e-5)
    assert record["dense_entropy"] == pytest.approx(run["dense_entropy"], abs=1e-5)


@pytest.mark.usefixtures("pictures")
def test_golden_numbers_files_and_second_runs(
    prune_yaml: Path, tmp_path: Path, golden: dict[str, Any], call: Call
) -> None:
    out = tmp_path / "out"
    assert call("main_score.py", "--config_file", prune_yaml, "--frame", "open_clip")[0] == 0
    code, console, _ = call("main_prune.py", "--config_file", prune_yaml)
    assert code == 0
    for word in ("parameters", "FLOPs", "-47.2%", "prune.json"):
        assert word in console
    _check_golden(out, golden)

    record = json.loads((out / "prune.json").read_text())
    for key in (
        "widths",
        "dense_entropy",
        "final_entropy",
        "probes",
        "params",
        "flops",
        "cost",
        "settings",
        "versions",
    ):
        assert key in record
    # Of 2 batches: the dense network, 6 probes by the blocks from the searched one on, and what is not kept.
    assert record["cost"]["block_forwards"] == 2 * (5 + 6 * (1 + 2 + 3 + 4 + 5) + (3 + 2 + 1))
    assert record["reproduce"].startswith("python main_prune.py --config_file")
    with Image.open(out / "prune.png") as picture:
        assert picture.size[0] > 600

    model, transform, tokenizer = amp.load_pruned(out / "pruned")
    blocks = model.visual.transformer.resblocks
    assert [b.mlp.c_fc.out_features for b in blocks] == [b.mlp.c_proj.in_features for b in blocks] == record["widths"]
    assert sum(p.numel() for p in model.visual.parameters()) == record["params"]["pruned"]
    assert model.encode_image(transform(Image.new("RGB", (40, 50)))[None]).shape == (1, 48)
    assert model.encode_text(tokenizer(["a"]).clamp(max=511)).shape == (1, 48)

    before = _files(out)
    for script in ("main_score.py", "main_prune.py"):
        code, console, _ = call(script, "--config_file", prune_yaml)
        assert (code, "already done" in console) == (0, True)
    assert _files(out) == before


def test_two_processes_give_the_golden_numbers(
    prune_yaml: Path, tmp_path: Path, golden: dict[str, Any], torchrun: Callable[..., Any], launch: Callable[..., Any]
) -> None:
    for script, run in (("main_score.py", torchrun), ("main_prune.py", launch)):
        done = run(2, script, "--config_file", prune_yaml)
        assert done.returncode == 0, done.stderr
    _check_golden(tmp_path / "out", golden)


def test_frame_is_learnt_from_the_scores(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    prune_yaml.write_text(prune_yaml.read_text().replace("frame: open_clip, ", ""))
    words = ["--config_file", prune_yaml]
    assert call("main_score.py", *words, "--frame", "open_clip")[0] == 0
    assert call("main_prune.py", *words, "--set", "prune.widths=[256,256,256,256,8]")[0] == 0
    assert json.loads((tmp_path / "out" / "prune.json").read_text())["widths"] == [256, 256, 256, 256, 8]


def test_random_baseline_differs_by_its_seed_alone(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = [
            "--set",
            "score.criterion=random",
            "--set",
            f"score.seed={seed}",
            "--set",
            f"output.dir={tmp_path}/{name}",
        ]
        assert call("main_score.py", "--config_file", prune_yaml, *words)[0] == 0
    a, b, c = ((tmp_path / name / "scores.safetensors") for name in "abc")
    assert a.read_bytes() == b.read_bytes()
    assert not torch.equal(load_file(a)["score.0"], load_file(c)["score.0"])


def test_other_settings_in_the_same_folder_are_refused(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    words = ["--config_file", prune_yaml]
    assert call("main_score.py", *words)[0] == 0
    assert call("main_prune.py", *words, "--set", "prune.search_steps=1")[0] == 0
    before = _files(tmp_path)
    for script in ("main_score.py", "main_prune.py"):
        code, _, err = call(script, *words, "--set", "score.inverse_temperature=20", "--set", "data.root=nowhere")
        assert (code, err.count("\n"), "nowhere: no such folder" in err) == (2, 1, True), "what is missing comes first"
    code, _, err = call("main_score.py", *words, "--set", "score.inverse_temperature=20")
    assert code == 2
    assert "scores.safetensors was made with score.inverse_temperature = 15.0, but this run has 20.0" in err
    assert _files(tmp_path) == before


def test_a_second_size_goes_to_a_folder_of_its_own(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    words, out = ["--config_file", prune_yaml, "--set", "prune.search_steps=1"], tmp_path / "out"
    assert call("main_score.py", *words)[0] == 0
    assert call("main_prune.py", *words)[0] == 0
    first = _files(tmp_path)
    sizes = {}
    for place, more in (
        ("params-0.8", ["prune.target.params=0.8"]),
        ("params-0.6", ["prune.target.params=0.6"]),
        ("increase-0.1", ["prune.entropy_increase=0.1"]),
    ):
        settings = [word for setting in more for word in ("--set", setting)]
        code, console, err = call("main_prune.py", *words, *settings)
        assert code == 0, err
        assert f"{out} already holds another pruning with these scores; this one is written to {out}/{place}" in console
        sizes[place] = json.loads((out / place / "prune.json").read_text())["params"]
        code, console, _ = call("main_prune.py", *words, *settings)
        assert (code, f"already done: {out}/{place}/prune.json" in console) == (0, True)
    assert sizes["params-0.6"]["pruned"] < sizes["params-0.8"]["pruned"]
    code, console, err = call("main_prune.py", *words, "--set", "prune.target.params=0.6", "--set", "prune.min_width=9")
    assert code == 0, err
    assert f"written to {out}/params-0.6-" in console, "of two with one name the second has a digest in its own"
    code, _, err = call("main_prune.py", *words, "--sweep", "params", "0.7", "0.8")
    assert code == 0, err
    assert (out / "params-0.7" / "pruned").is_dir()
    code, _, err = call("main_prune.py", *words, "--sweep", "params", "0.5", "--set", "prune.target.flops=0.5")
    assert (code, err.startswith("error: --sweep: ")) == (2, True)
    assert {path: content for path, content in _files(tmp_path).items() if path in first} == first


def test_scores_of_another_model_are_refused(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    words = ["--config_file", prune_yaml]
    assert call("main_score.py", *words)[0] == 0
    weights = load_file(GOLDEN / "tiny-clip.safetensors")
    weights["visual.class_embedding"] += 1
    save_file(weights, tmp_path / "other.safetensors")
    for setting, key in (
        (f"model.pretrained={tmp_path}/other.safetensors", "model.pretrained"),
        ("model.name=ViT-B-32", "model.name"),
        ("data.batch_size=16", "data.batch_size"),
    ):
        code, _, err = call("main_prune.py", *words, "--set", setting)
        assert code == 2
        assert f"scores.safetensors: made with {key} = " in err
    assert not (tmp_path / "out" / "prune.json").exists()


def test_weights_changed_under_the_same_name_are_noticed(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(GOLDEN / "tiny-clip.safetensors", weights)
    words = ["--config_file", prune_yaml, "--set", f"model.pretrained={weights}"]
    assert call("main_score.py", *words)[0] == 0
    tensors = load_file(weights)
    tensors["visual.class_embedding"] += 1
    save_file(tensors, weights)
    for script in ("main_score.py", "main_prune.py"):
        code, _, err = call(script, *words)
        assert code == 2
        assert "before the weights changed" in err


class _Malice:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sentinel,)


def _broken_folder(root: Path, text: str | None) -> Path:
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for index in range(40 if text is not None else 0):
            (root / split / f"{index}.png").write_text(text or "")
    return root


BAD: dict[str, tuple[str, list[str]]] = {
    "missing folder": ("data.root={tmp}/nowhere", ["data.root", "/nowhere", "no such folder"]),
    "empty folder": ("data.root={tmp}/empty", ["data.root", "/empty/val", "no image file"]),
    "no readable image": ("data.root={tmp}/text", ["data.root", "/text", "no readable image"]),
    "fewer images than a batch": ("data.batch_size=65", ["data.batch_size", "65", "64 images"]),
    "unknown model": ("model.name=ViT-B-23", ["model.name", "'ViT-B-23'", "did you mean 'ViT-B-32'"]),
    "model file missing": ("model.name={tmp}/no.json", ["model.name", "no.json", "cannot be read"]),
    "model file no model": ("model.name={tmp}/not_a_model.json", ["model.name", "vision_cfg", "missing"]),
    "model not prunable": (
        "model.name=RN50 model.pretrained=null",
        ["model.name", "'RN50'", "vision tower is native"],
    ),
    "bad kwargs": ("model.kwargs.depht=3", ["model.kwargs", "depht"]),
    "weights missing": ("model.pretrained={tmp}/no.pt", ["model.pretrained", "no.pt", "neither an existing file"]),
    "weights of another architecture": ("model.name=ViT-B-32", ["model.pretrained", "not the weights of ViT-B-32"]),
    "weights cut off": (
        "model.pretrained={tmp}/cut.safetensors",
        ["model.pretrained", "cut.safetensors", "cannot be read"],
    ),
    "pickle with code": ("model.pretrained={tmp}/malice.pt", ["model.pretrained", "malice.pt", "run code"]),
    "unknown key": ("data.batchsize=32", ["data.batchsize", "did you mean 'batch_size'"]),
    "wrong type": ("data.batch_size=32.5", ["data.batch_size", "32.5", "integer"]),
    "output is a file": ("output.dir={tmp}/prune.yaml/out", ["output.dir", "is a file; choose a folder"]),
    "wrong widths": ("prune.widths=[3]", ["prune.widths", "1 widths", "5 blocks"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(prune_yaml: Path, tmp_path: Path, call: Call, case: str) -> None:
    setting, words = BAD[case]
    _broken_folder(tmp_path / "empty", None)
    _broken_folder(tmp_path / "text", "not an image")
    (tmp_path / "not_a_model.json").write_text("{}")
    (tmp_path / "cut.safetensors").write_bytes((GOLDEN / "tiny-clip.safetensors").read_bytes()[:1000])
    sentinel = tmp_path / "sentinel"
    torch.save({"state_dict": _Malice(sentinel)}, tmp_path / "malice.pt")
    scripts = ["main_score.py"]
    if "widths" in setting:
        assert call("main_score.py", "--config_file", prune_yaml)[0] == 0
        scripts = ["main_prune.py"]
    before = _files(tmp_path)
    for script in scripts:
        settings = [word for one in setting.format(tmp=tmp_path).split() for word in ("--set", one)]
        code, _, err = call(script, "--config_file", prune_yaml, *settings)
        assert code == 2
        line = next(line for line in err.splitlines() if line.startswith("error: "))
        assert err.rstrip().endswith(line)
        assert "Traceback" not in err
        for word in words:
            assert word in line
    assert _files(tmp_path) == before
    assert not sentinel.exists()


def test_pruning_before_scoring_says_what_to_do(prune_yaml: Path, call: Call) -> None:
    code, _, err = call("main_prune.py", "--config_file", prune_yaml)
    assert code == 2
    assert "run main_score.py" in err


def test_batch_that_does_not_divide(prune_yaml: Path, torchrun: Callable[..., Any], tmp_path: Path) -> None:
    done = torchrun(2, "main_score.py", "--config_file", prune_yaml, "--set", "data.batch_size=33")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: data.batch_size: 33 is not divisible by the 2 processes"]
    assert not (tmp_path / "out").exists()


def test_broken_image_is_skipped_with_a_count_or_refused(
    prune_yaml: Path, golden_images: Path, tmp_path: Path, call: Call
) -> None:
    shutil.copytree(golden_images, tmp_path / "images")
    broken = tmp_path / "images" / "train" / "scene" / "0007.png"
    broken.write_bytes(broken.read_bytes()[:200])
    words = ["--config_file", prune_yaml, "--set", f"data.root={tmp_path}/images"]
    code, _, err = call("main_score.py", *words, "--set", "data.strict=true")
    assert code == 2
    assert f"error: data.strict: {broken}: broken image" in err
    assert not (tmp_path / "out").exists()
    code, out, err = call("main_score.py", *words)
    assert code == 0
    assert err.count(f"warning: skipped broken image {broken}") == 1
    assert "skipped 1 of 64 image files" in out


def test_unknown_option_and_missing_config(call: Call) -> None:
    code, _, err = call("main_score.py", "--config_flie", "x")
    assert code == 2
    assert "--config_file" in err
    code, _, err = call("main_score.py", "--config_file", "configs/prune_entropy/open_clip_g_coco.yaml")
    assert code == 2
    assert "did you mean 'configs/prune_entropy/open_clip_g_coco_entropy.yaml'" in err
