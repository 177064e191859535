"""What only a CUDA device can show: the same numbers as the CPU, NCCL, bf16."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_golden_widths_on_cuda(
    prune_yaml: Path, tmp_path: Path, golden: dict[str, Any], call: Callable[..., tuple[int, str, str]]
) -> None:
    for script in ("main_score.py", "main_prune.py"):
        assert call(script, "--config_file", prune_yaml)[0] == 0
    scores = load_file(tmp_path / "out" / "scores.safetensors")
    for block, expected in enumerate(golden["score"]["scores_abs@15.0"]):
        assert (scores[f"score.{block}"] - torch.tensor(expected)).abs().max() <= 1e-3 * max(expected)
    record = json.loads((tmp_path / "out" / "prune.json").read_text())
    assert record["widths"] == golden["runs"][0]["widths"]


def test_bf16_scores_rank_like_fp32(
    prune_yaml: Path, tmp_path: Path, golden: dict[str, Any], call: Callable[..., tuple[int, str, str]]
) -> None:
    assert call("main_score.py", "--config_file", prune_yaml, "--set", "model.precision=bf16")[0] == 0
    scores = load_file(tmp_path / "out" / "scores.safetensors")
    for block, expected in enumerate(golden["score"]["scores_abs@15.0"]):
        both = torch.stack([scores[f"score.{block}"], torch.tensor(expected)])
        assert torch.corrcoef(both)[0, 1] > 0.9


def test_all_gpus_of_the_machine(prune_yaml: Path, tmp_path: Path, torchrun: Callable[..., Any]) -> None:
    done = torchrun(torch.cuda.device_count(), "main_score.py", "--config_file", prune_yaml)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "scores.safetensors").exists()


@pytest.mark.parametrize("store", ["device", "host", "disk"])
def test_racing_and_compensation_on_cuda(
    store: str, prune_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    words = [
        "search=racing",
        "two_sided=true",
        "compensation=ridge",
        "num_calibration_samples=64",
        "target.params=0.7",
        f"store={store}",
    ]
    settings = [part for word in words for part in ("--set", f"prune.{word}")]
    for script in ("main_score.py", "main_prune.py"):
        code, _, err = call(script, "--config_file", prune_yaml, *settings)
        assert code == 0, err
    params = json.loads((tmp_path / "out" / "prune.json").read_text())["params"]
    assert params["pruned"] / params["dense"] == pytest.approx(0.7, rel=0.01)


@pytest.mark.parametrize("words", [("compile=true",), ("activation_checkpointing=true",), ("parallel=fsdp",)])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "pure_bf16"])
def test_distillation_learns_on_cuda(
    precision: str, words: tuple[str, ...], distill_yaml: Path, tmp_path: Path, torchrun: Callable[..., Any]
) -> None:
    settings = [f"--set=optim.{word}" for word in (f"precision={precision}", *words)]
    done = torchrun(torch.cuda.device_count(), "distill.py", "--config_file", distill_yaml, *settings)
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
