"""Laws of the comparison of searches: equal sizes, paired differences, images that no search saw."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, refusal
from studies.search_cost import SearchBenchmark, scale_to
from studies.search_cost_table import compare, compare_batches, run_table, summarise, summary_table
from torch import Tensor

from amp.settings.prune import PruneConfig
from amp.towers import Tower

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]
DENSE = [256] * 5


@pytest.mark.parametrize("widths", [[200, 100, 50, 30, 20], [4, 8, 256, 256, 12], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("goal", [[128] * 5, [20, 60, 120, 200, 256], [3, 3, 3, 3, 3]])
def test_widths_are_scaled_to_the_size_of_others(widths: list[int], goal: list[int]) -> None:
    found = scale_to(widths, goal, DENSE, [2] * 5)
    assert abs(sum(found) - sum(goal)) <= len(DENSE) // 2
    assert all(1 <= width <= whole for width, whole in zip(found, DENSE, strict=True))
    assert all(a <= b for a, x in zip(found, widths, strict=True) for b, y in zip(found, widths, strict=True) if x <= y)


def test_what_has_the_size_stays_as_it_is() -> None:
    assert scale_to([100, 50, 25, 7, 3], [100, 50, 25, 7, 3], DENSE, [5, 1, 1, 1, 9]) == [100, 50, 25, 7, 3]


def test_differences_are_those_of_the_same_batches() -> None:
    values = [1.0, 2.0, 4.0]
    same = compare_batches(values, values)
    assert (same["difference"], same["difference_error"]) == (0.0, 0.0)
    more = compare_batches([value + 0.5 for value in values], values)
    assert (more["difference"], more["difference_error"]) == (0.5, 0.0)
    assert more["error"] == pytest.approx(torch.tensor(values).std().item() / math.sqrt(3))


def record(widths: list[int], block_forwards: int, seconds: float) -> dict[str, Any]:
    return {"widths": widths, "params": 76 + sum(widths), "block_forwards": block_forwards, "seconds": seconds}


def test_the_worst_of_all_runs_is_told() -> None:
    exact, plain = record([8, 16], 50, 5.0), record([8, 16], 100, 10.0)
    runs = []
    for widths, forwards in (([8, 16], 30), ([4, 16], 40), ([8, 17], 20)):
        one = record(widths, forwards, 1.0)
        runs.append({"searches": {"racing": one | compare(one, plain, exact, [4, 1])}})
    (summary,) = summarise(runs).values()
    assert summary["forwards_share"] == {"mean": pytest.approx(0.3), "worst": 0.4}
    assert summary["seconds_of_exact"]["worst"] == 0.2
    assert summary["blocks_equal"] == {"mean": pytest.approx(2 / 3), "worst": 0.5}
    assert summary["largest_step"]["worst"] == 1
    assert summary["neurons_more"]["worst"] == pytest.approx(-4 / 24)
    assert summary["params_more"]["worst"] == pytest.approx(-4 / 100)
    assert "0.300 (0.400)" in summary_table({"racing": summary})


def test_seconds_of_a_plain_search_that_did_not_run_are_not_known() -> None:
    exact = record([8, 16], 50, 5.0)
    one = exact | compare(exact, {"block_forwards": 100, "seconds": None}, exact, [4, 1])
    summary = summarise([{"searches": {"exact": one}}])
    assert (one["seconds_share"], summary["exact"]["seconds_share"]) == (None, None)
    assert "| - |" in " ".join(summary_table(summary).split())
    assert "| - |" in " ".join(run_table({"exact": one}).split())


@pytest.fixture
def benchmark(tower: Tower, scores: list[Tensor], golden_images: Path, tmp_path: Path) -> SearchBenchmark:
    config = PruneConfig.model_validate(
        {
            "model": {"name": "tiny"},
            "data": {
                "name": "imagefolder",
                "root": str(golden_images),
                "batch_size": 4,
                "num_workers": 0,
                "num_val_samples": 40,
            },
            "prune": {"num_calibration_samples": 32},
            "output": {"dir": str(tmp_path)},
        }
    )
    return SearchBenchmark(config, tower, scores)


def test_fresh_images_are_others_than_the_searches(benchmark: SearchBenchmark) -> None:
    benchmark.read(3, 24, True)
    assert (len(benchmark.held_out), len(benchmark.fresh), len(benchmark.calibration)) == (10, 6, 8)
    seen, fresh = (torch.cat(batches).flatten(1) for batches in (benchmark.held_out, benchmark.fresh))
    assert torch.cdist(seen, fresh).min() > 0
    before = benchmark.held_out
    benchmark.read(3, 0, False)
    assert benchmark.fresh == []
    assert all(torch.equal(a, b) for a, b in zip(before, benchmark.held_out, strict=True))
    says = refusal(lambda: benchmark.read(3, 25, False))
    assert says == "--fresh: 25 images besides the data.num_val_samples 40 of the search; the split has 64"


def test_the_searches_are_measured_side_by_side(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    assert (ROOT / "configs" / "demo" / "search_cost.yaml").exists()
    words = ["--config_file", prune_yaml, "--thresholds", "1e-2", "--json", tmp_path / "cost.json", "--fresh", "16"]
    settings = {"data.batch_size": 4, "data.num_val_samples": 48, "prune.search_steps": 2, "prune.store_every": 1}
    code, console, _ = call(
        "eval/eval_search_cost.py", *words, *(word for key in settings for word in ("--set", f"{key}={settings[key]}"))
    )
    assert code == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    (run,) = found["runs"]
    plain, exact, strict, fast, ridge = run["searches"].values()
    assert plain["widths"] == exact["widths"]
    assert plain["block_forwards"] == 12 * 5 * (1 + 10)
    assert fast["block_forwards"] <= strict["block_forwards"] <= exact["block_forwards"] < 0.7 * plain["block_forwards"]
    assert ridge["seconds_of_exact"] > 0
    assert exact["fresh"]["difference"] == 0
    assert ridge["fresh"]["entropy"] != exact["fresh"]["entropy"]
    assert found["summary"]["racing fast"]["forwards_share"]["worst"] == fast["forwards_share"]
    for word in ("a step takes", "racing strict", "block forwards", "over 1 runs"):
        assert word in console
