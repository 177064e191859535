"""Rates of every step, and what AdamW does in low precision."""

from pathlib import Path
from typing import Any

import pytest
import torch

from amp.distillation import make_optimizer, rates
from amp.distillation.optimizer import check_division
from amp.errors import UserError
from amp.settings.distill import DistillConfig, OptimSettings
from amp.settings.reading.yaml_files import load_config


def test_rates_start_at_zero_peak_after_warmup_and_end_near_min_lr() -> None:
    optim = OptimSettings(base_lr=1e-3, min_lr=1e-6, epochs=10, warmup_epochs=2)
    values = [rates(step, optim, 512, 50) for step in range(500)]
    lr = [value[0] for value in values]
    assert lr[0] == 0
    assert lr[99] == lr[100] == max(lr) == pytest.approx(2e-3)
    assert lr[:100] == sorted(lr[:100])
    assert lr[100:] == sorted(lr[100:], reverse=True)
    assert lr[-1] == pytest.approx(1e-6, rel=0.05)
    decay = [value[1] for value in values]
    assert decay == sorted(decay)
    assert (decay[0], decay[-1]) == pytest.approx((0.04, 0.2), rel=1e-4)


def test_warmup_of_nothing_and_of_one_step() -> None:
    assert rates(0, OptimSettings(base_lr=1e-3, min_lr=0.0, epochs=2, warmup_epochs=0), 256, 5)[0] == 1e-3
    assert rates(0, OptimSettings(base_lr=1e-3, min_lr=0.0, epochs=2, warmup_epochs=1), 256, 1)[0] == 0


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


@pytest.mark.parametrize(
    ("word", "reason"), [("optim.accumulate=2", "micro-batch"), ("optim.precision=bf16", "pure_bf")]
)
def test_a_step_in_backward_is_refused_where_it_is_wrong(distill_yaml: Path, word: str, reason: str) -> None:
    words = ["optim.precision=pure_bf16", "optim.step_in_backward=true"]
    config = load_config(DistillConfig, distill_yaml, words)
    with pytest.raises(
        UserError,
        match=r"optim.step_in_backward: only allowed on one process: each of 2 processes would step before .* averaged",
    ):
        check_division(config.optim, 16, 2)
    with pytest.raises(UserError, match=f"step_in_backward .*{reason}"):
        load_config(DistillConfig, distill_yaml, [*words, word])
