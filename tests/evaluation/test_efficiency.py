"""Size and speed, by eval/eval_efficiency.py as users run it: tables, JSON, the pruned beside the dense, mistakes."""

import json
from collections.abc import Callable
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from helpers.model_folders import WIDTHS
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from amp.evaluation.efficiency import cells, record
from amp.evaluation.efficiency.cells import Measure, in_precision, measure_precision
from amp.models.throughput import images_for, rebuild
from amp.towers import Tower

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
    for words in ("| images/s |", "median over batches of 2", "CPU (", "sizes.json"):
        assert words in out
    assert "speed-up" not in out
    record = json.loads((tmp_path / "new" / "sizes.json").read_text())
    assert record["sizes"] == {
        "dense": {"params": 266688, "mlp_params": 165440, "flops": 8755200, "flops_with_attention_products": 9125120}
    }
    (cell,) = record["cells"]
    for rates in (cell["images_per_second"], cell["latency_ms"]):
        assert 0 < rates["lower_quartile"] <= rates["median"] <= rates["upper_quartile"]
    assert cell["tflops_per_second"] == cell["images_per_second"]["median"] * 9125120 / 1e12
    assert [cell[key] for key in ("tower", "precision", "mode")] == ["dense", "fp32", "eager"]
    assert record["batch_size"] == 2
    assert record["reproduce"].startswith(f"python {SCRIPT} --model")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sizes.json"]


@pytest.mark.parametrize("option", ["--model", "--pretrained"])
def test_a_folder_beside_its_dense_one(
    call: Any, folder: Path, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "compile_blocks", lambda tower: compiled.append(tower.widths))
    compiled: list[list[int]] = []
    asked = ["--precisions", "bf16", "fp32", "--modes", "compiled", "eager"]
    code, out, _ = call(SCRIPT, option, folder, *QUICK, *asked, "--json", tmp_path / "sizes.json")
    assert code == 0
    assert _cells(out, "vision tower") == ["dense", "pruned"]
    record = json.loads((tmp_path / "sizes.json").read_text())
    dense, pruned = record["sizes"]["dense"], record["sizes"]["pruned"]
    width, tokens, dropped = 64, 17, 5 * 256 - sum(WIDTHS)
    assert record["widths"] == WIDTHS
    assert dense["params"] - pruned["params"] == dropped * (2 * width + 1)
    assert dense["mlp_params"] - pruned["mlp_params"] == dropped * (2 * width + 1)
    assert dense["flops"] - pruned["flops"] == 2 * tokens * dropped * 2 * width
    theory = record["speedup"]["theoretical"]
    assert theory == dense["flops"] / pruned["flops"]
    assert f"theoretical speed-up: {theory:.2f}" in out
    assert compiled == [[256] * 5, WIDTHS] * 2
    names = [(cell["precision"], cell["mode"], cell["tower"]) for cell in record["cells"]]
    assert names == [*product(("fp32", "bf16"), ("eager", "compiled"), ("dense", "pruned"))]
    for slow, fast in zip(record["cells"][::2], record["cells"][1::2], strict=True):
        speedup = fast["images_per_second"]["median"] / slow["images_per_second"]["median"]
        assert (fast["speedup"], fast["share_of_theory"]) == (speedup, pytest.approx(speedup / theory))
        assert fast["planned_memory_bytes"] < slow["planned_memory_bytes"]
        assert f"{speedup:.2f}" in out


def test_shares_are_of_what_the_clock_says(tower: Tower) -> None:
    """A clock that a dense batch moves by 3 s, a pruned one by 2 s, and a single image by as much."""

    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock, half = Clock(), [128] * 5

    def run(own: Tower, images: Tensor) -> None:
        clock.now += 2 if own.widths == half else 3

    rounds: list[int] = []
    how = Measure(torch.device("cpu"), 8, 10, 12.0, rounds.append, clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "rebuild", lambda *words: _watched(rebuild(*words), run))
        ((mode, measured),) = measure_precision(tower.base, {"dense": None, "pruned": half}, "fp32", ("eager",), how)
    sizes = {name: {"flops": n, "flops_with_attention_products": 2 * n} for name, n in (("dense", 20), ("pruned", 10))}
    compared = record.compare(measured, sizes)
    assert mode == "eager"
    assert rounds == [1] * 3 + [7] + [1] * 3 + [7]  # 5 s each: the third one begins after 10 s, the fourth after 15 s
    assert {name: own["images_per_second"]["median"] for name, own in compared.items()} == {"dense": 8 / 3, "pruned": 4}
    assert {name: own["latency_ms"]["median"] for name, own in compared.items()} == {"dense": 3000, "pruned": 2000}
    assert (compared["pruned"]["speedup"], compared["pruned"]["share_of_theory"]) == (1.5, 0.75)
    assert compared["dense"]["tflops_per_second"] == 8 / 3 * 40 / 1e12
    assert "speedup" not in compared["dense"]


def _watched(tower: Tower, run: Callable[[Tower, Tensor], None]) -> Tower:
    tower.visual.register_forward_hook(lambda module, inputs, output: run(tower, inputs[0]))
    return tower


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_plan_of_memory_is_what_the_allocator_gives(tower: Tower, precision: Any) -> None:
    own = in_precision(tower.base, precision, "cpu")
    assert {parameter.dtype for parameter in own.slots[0].out_projection.parameters()} == {own.dtype}
    images = images_for(own, 16)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        own.visual(images)
    changes = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(accumulate(changes)) + images.nbytes + cells.tower_bytes(own)
    assert record.plan(tower.base, precision, None, 16) == pytest.approx(peak, rel=0.1)


def test_a_folder_on_meta_has_the_speedup_of_theory(call: Any, folder: Path) -> None:
    code, out, _ = call(SCRIPT, "--model", folder, "--meta")
    assert (code, "images/s" in out, "measured" in out) == (0, False, False)
    pruned_flops = 8755200 - 2 * 17 * (5 * 256 - sum(WIDTHS)) * 2 * 64
    assert f"theoretical speed-up: {8755200 / pruned_flops:.2f}" in out


def test_the_paper_tower_on_meta(call: Any, tmp_path: Path) -> None:
    code, out, _ = call(SCRIPT, "--model", "ViT-g-14", "--meta", "--json", tmp_path / "g.json")
    assert code == 0
    assert _cells(out, "input") == ["224²"]
    assert _cells(out, "parameters") == ["1.01B"]
    assert _cells(out, "share of parameters in MLPs") == ["68.4%"]
    assert _cells(out, "FLOPs without") == ["519B"]
    assert _cells(out, "FLOPs with attention") == ["534B"]
    record = json.loads((tmp_path / "g.json").read_text())
    assert "cells" not in record
    sizes = record["sizes"]["dense"]
    expected = {"params": 1.0126e9, "flops": 0.519e12, "flops_with_attention_products": 0.534e12}
    assert {key: sizes[key] for key in expected} == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TINY, "--meta", "--pretrained", "nowhere"], "--pretrained: 'nowhere' is neither an existing file"),
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


def test_what_does_not_fit_is_told_of_its_cell(call: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def images(tower: Tower, batch_size: int) -> Tensor:
        if tower.widths == WIDTHS:
            raise torch.OutOfMemoryError("of many lines")
        return images_for(tower, batch_size)

    monkeypatch.setattr(cells, "images_for", images)
    code, out, _ = call(SCRIPT, "--model", folder, *QUICK)
    assert (code, "not measured: pruned, fp32, eager: out of memory" in out) == (0, True)
    rows = [line.split("|")[1:-1] for line in out.splitlines() if "eager |" in line]
    assert [[cell.strip() == "-" for cell in row[3:6]] for row in rows] == [[False] * 3, [True] * 3]


def test_two_processes_measure_once(launch: Any, tmp_path: Path) -> None:
    run = launch(2, SCRIPT, *TINY, *QUICK, "--json", tmp_path / "sizes.json")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("| parameters") == 1
    assert json.loads((tmp_path / "sizes.json").read_text())["cells"][0]["images_per_second"]["median"] > 0


def test_another_image_size(call: Any, folder: Path) -> None:
    dinov2 = ["--model", "vit_small_patch14_dinov2", "--model_type", "dinov2", "--meta"]
    large, small = (call(SCRIPT, *dinov2, *words)[1] for words in ([], ["--img_size", 224]))
    assert (_cells(large, "input"), _cells(small, "input")) == (["518²"], ["224²"])
    assert _cells(small, "share of parameters in MLPs") != _cells(
        large, "share of parameters in MLPs"
    )  # fewer positions
    code, _, err = call(SCRIPT, "--model", folder, "--img_size", 64)
    assert (code, f"error: --img_size: 64: {folder} has the fixed image size 32" in err) == (2, True)
    code, _, err = call(SCRIPT, *TINY, "--img_size", 32, "--meta")
    assert code == 0, err
