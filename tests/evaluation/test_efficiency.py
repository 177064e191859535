"""Size and speed, by eval/eval_efficiency.py as users run it: tables, JSON, the pruned beside the dense, mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from helpers.model_folders import WIDTHS

from amp.models import throughput

pytestmark = pytest.mark.slow

SCRIPT = "eval/eval_efficiency.py"
TINY = ["--model", GOLDEN / "tiny-clip.json"]
QUICK = ["--batch_size", 2, "--num_rounds", 3]


def _cells(out: str, first: str) -> list[str]:
    """The row of a table that begins with `first`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    return next(row[1:] for row in rows if row[0].startswith(first))


def test_the_dense_tiny_one(call: Any, tmp_path: Path) -> None:
    weights = ["--pretrained", GOLDEN / "tiny-clip.safetensors"]
    code, out, _ = call(SCRIPT, *TINY, *weights, *QUICK, "--json", tmp_path / "new" / "sizes.json")
    assert code == 0
    assert _cells(out, "vision tower") == ["dense"]
    assert _cells(out, "parameters") == ["267K"]
    assert _cells(out, "FLOPs without attention products (the paper's)") == ["8.76M"]
    for words in ("images/s, median", "batches of 2, 3 rounds, fp32 weights, CPU (", "sizes.json"):
        assert words in out
    assert "speed-up" not in out
    record = json.loads((tmp_path / "new" / "sizes.json").read_text())
    assert record["sizes"] == {
        "dense": {"params": 266688, "mlp_params": 165440, "flops": 8755200, "flops_with_attention_products": 9125120}
    }
    rates = record["throughput"]["dense"]
    assert 0 < rates["lower_quartile"] <= rates["median"] <= rates["upper_quartile"]
    assert (record["batch_size"], record["precision"], record["num_rounds"]) == (2, "fp32", 3)
    assert record["reproduce"].startswith(f"python {SCRIPT} --model")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sizes.json"]


@pytest.mark.parametrize("option", ["--model", "--pretrained"])
def test_a_folder_beside_its_dense_one(call: Any, folder: Path, tmp_path: Path, option: str) -> None:
    words = [option, folder, *QUICK, "--precision", "bf16", "--json", tmp_path / "sizes.json"]
    code, out, _ = call(SCRIPT, *words)
    assert code == 0
    assert _cells(out, "vision tower") == ["dense", "pruned"]
    record = json.loads((tmp_path / "sizes.json").read_text())
    dense, pruned = record["sizes"]["dense"], record["sizes"]["pruned"]
    width, tokens, dropped = 64, 17, 5 * 256 - sum(WIDTHS)
    assert record["widths"] == WIDTHS
    assert dense["params"] - pruned["params"] == dropped * (2 * width + 1)
    assert dense["mlp_params"] - pruned["mlp_params"] == dropped * (2 * width + 1)
    assert dense["flops"] - pruned["flops"] == 2 * tokens * dropped * 2 * width
    rates, speedup = record["throughput"], record["speedup"]
    assert speedup["theoretical"] == dense["flops"] / pruned["flops"]
    assert speedup["measured"] == rates["pruned"]["median"] / rates["dense"]["median"]
    assert speedup["ratio"] == pytest.approx(speedup["measured"] / speedup["theoretical"])
    assert f"{speedup['measured']:.2f} measured" in out
    assert f"ratio {speedup['ratio']:.2f}" in out
    assert "bf16 weights" in out


def test_a_folder_on_meta_has_the_speedup_of_theory(call: Any, folder: Path) -> None:
    code, out, _ = call(SCRIPT, "--model", folder, "--meta")
    assert (code, "images/s" in out, "measured" in out) == (0, False, False)
    pruned_flops = 8755200 - 2 * 17 * (5 * 256 - sum(WIDTHS)) * 2 * 64
    assert f"speed-up: {8755200 / pruned_flops:.2f} in theory" in out


def test_the_paper_tower_on_meta(call: Any, tmp_path: Path) -> None:
    code, out, _ = call(SCRIPT, "--model", "ViT-g-14", "--meta", "--json", tmp_path / "g.json")
    assert code == 0
    assert _cells(out, "input") == ["224²"]
    assert _cells(out, "parameters") == ["1.01B"]
    assert _cells(out, "MLP share") == ["68.4%"]
    assert _cells(out, "FLOPs without") == ["0.519T"]
    assert _cells(out, "FLOPs with attention") == ["0.534T"]
    record = json.loads((tmp_path / "g.json").read_text())
    assert "throughput" not in record
    sizes = record["sizes"]["dense"]
    expected = {"params": 1.0126e9, "flops": 0.519e12, "flops_with_attention_products": 0.534e12}
    assert {key: sizes[key] for key in expected} == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TINY, "--meta", "--pretrained", "nowhere"], "--pretrained: 'nowhere' is no file"),
        (["--model", "ViT-g-41", "--meta"], "did you mean"),
        (["--model", "configs", "--meta"], "configs: holds no config.json"),
    ],
)
def test_mistakes_are_one_line(call: Any, words: list[Any], said: str) -> None:
    code, out, err = call(SCRIPT, *words)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_folder_of_another_model_is_refused(call: Any, folder: Path) -> None:
    code, _, err = call(SCRIPT, "--model", "ViT-B-32", "--pretrained", folder, "--meta")
    assert (code, "not 'ViT-B-32'" in err, len(err.splitlines())) == (2, True, 1)


def test_a_batch_too_large_stands_under_its_option(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_batch(*arguments: Any) -> float:
        raise torch.OutOfMemoryError("of many lines")

    monkeypatch.setattr(throughput, "_time_batch", time_batch)
    code, _, err = call(SCRIPT, *TINY, "--batch_size", 8)
    said = "error: --batch_size: 8 images do not fit the device's memory"
    assert (code, err.splitlines()[-1]) == (2, said)


def test_two_processes_measure_once(launch: Any, tmp_path: Path) -> None:
    run = launch(2, SCRIPT, *TINY, *QUICK, "--json", tmp_path / "sizes.json")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("| parameters") == 1
    assert json.loads((tmp_path / "sizes.json").read_text())["throughput"]["dense"]["median"] > 0


def test_another_image_size(call: Any, folder: Path) -> None:
    dinov2 = ["--model", "vit_small_patch14_dinov2", "--model_type", "dinov2", "--meta"]
    large, small = (call(SCRIPT, *dinov2, *words)[1] for words in ([], ["--img_size", 224]))
    assert (_cells(large, "input"), _cells(small, "input")) == (["518²"], ["224²"])
    assert _cells(small, "MLP share") != _cells(large, "MLP share")  # fewer positions
    code, _, err = call(SCRIPT, "--model", folder, "--img_size", 64)
    assert (code, f"error: --img_size: 64: {folder} is of 32 px" in err) == (2, True)
    code, _, err = call(SCRIPT, *TINY, "--img_size", 32, "--meta")
    assert code == 0, err
