"""Distillation in low precision: nearly as good as fp32, and a step in the backward pass is the same step."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amp.distill.loop import Loop
from amp.distill.optimizer import check_division, make_optimizer
from amp.errors import UserError
from amp.models.folder import load_tower
from amp.settings.distill import DistillConfig, OptimSettings
from amp.settings.load import load_config


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def first_of(remaining: Callable[[Loop], Iterator[Tensor]], count: int) -> Callable[[Loop], Iterator[Tensor]]:
    return lambda self: (images for images, _ in zip(remaining(self), range(count), strict=False))


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_low_precision_learns_nearly_as_well(
    distill_yaml: Path, tmp_path: Path, golden_distill: dict[str, Any], call: Callable[..., Any], precision: str
) -> None:
    code, _, err = call("distill.py", "--config_file", distill_yaml, "--set", f"optim.precision={precision}")
    assert code == 0, err
    last = [step["loss"] for step in log_of(tmp_path / "out")][-4:]
    assert sum(last) == pytest.approx(sum(step["loss"] for step in golden_distill["steps"][-4:]), rel=0.1)
    load_tower(tmp_path / "out" / "distilled")


def test_pure_bf16_moves_where_plain_bf16_rounds_to_nothing() -> None:
    def trained(precision: Any) -> float:
        weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        settings = OptimSettings(base_lr=1e-4, min_lr=0.0, epochs=2, precision=precision)
        optimizer = make_optimizer([weight], settings)
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return weight.item()

    assert trained("fp32") == 1.0  # AdamW without Kahan sums on bf16 weights: every step is lost.
    assert trained("pure_bf16") == pytest.approx(0.99, abs=0.004)


def test_a_step_in_backward_is_the_same_step(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config_file", distill_yaml, "--set", "optim.precision=pure_bf16", "--set", "output.save_every=7"]
    assert call("distill.py", *words, "--set", f"output.dir={tmp_path}/whole")[0] == 0
    words += ["--set", "optim.step_in_backward=true"]
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_remaining", first_of(Loop._remaining, 9))
        patched.setattr("amp.models.folder.save_tower", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call("distill.py", *words)[0] == 130
    assert call("distill.py", *words)[0] == 0
    assert [s["loss"] for s in log_of(tmp_path / "out")] == [s["loss"] for s in log_of(tmp_path / "whole")]


@pytest.mark.parametrize(
    ("word", "reason"), [("optim.accumulate=2", "micro-batch"), ("optim.precision=bf16", "pure_bf")]
)
def test_a_step_in_backward_is_refused_where_it_is_wrong(distill_yaml: Path, word: str, reason: str) -> None:
    words = ["optim.precision=pure_bf16", "optim.step_in_backward=true"]
    config = load_config(DistillConfig, distill_yaml, words)
    with pytest.raises(UserError, match=r"optim.step_in_backward: each of 2 processes would step before .* averaged"):
        check_division(config.optim, 16, 2)
    with pytest.raises(UserError, match=f"step_in_backward .*{reason}"):
        load_config(DistillConfig, distill_yaml, [*words, word])
