"""A step of distillation, divided, in low precision, or with its update in the backward pass, is the same step."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amp.distillation import Loop, NotFiniteError, Trainer, load_teacher_and_student
from amp.models.folder import load_tower
from amp.settings.distill import DistillConfig
from amp.settings.reading.yaml_files import load_config


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def first_of(remaining: Callable[[Loop], Iterator[Tensor]], count: int) -> Callable[[Loop], Iterator[Tensor]]:
    return lambda self: (images for images, _ in zip(remaining(self), range(count), strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_low_precision_learns_nearly_as_well(
    distill_yaml: Path, tmp_path: Path, golden_distill: dict[str, Any], call: Callable[..., Any], precision: str
) -> None:
    code, _, err = call("distill.py", "--config_file", distill_yaml, "--set", f"optim.precision={precision}")
    assert code == 0, err
    last = [step["loss"] for step in log_of(tmp_path / "out")][-4:]
    assert sum(last) == pytest.approx(sum(step["loss"] for step in golden_distill["steps"][-4:]), rel=0.1)
    load_tower(tmp_path / "out" / "distilled")


@pytest.mark.slow
def test_a_step_in_backward_is_the_same_step(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config_file", distill_yaml, "--set", "optim.precision=pure_bf16", "--set", "output.save_every=7"]
    assert call("distill.py", *words, "--set", f"output.dir={tmp_path}/whole")[0] == 0
    words += ["--set", "optim.step_in_backward=true"]
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_remaining", first_of(Loop._remaining, 9))
        patched.setattr("amp.models.folder.save_tower", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call("distill.py", *words)[0] == 130
    assert call("distill.py", *words)[0] == 0
    assert [s["loss"] for s in log_of(tmp_path / "out")] == [s["loss"] for s in log_of(tmp_path / "whole")]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_known_targets_are_those_of_the_teacher(distill_yaml: Path, accumulate: int) -> None:
    config = load_config(DistillConfig, distill_yaml, [f"optim.accumulate={accumulate}"])
    records, weights = [], []
    for known in (False, True):
        teacher, student, _ = load_teacher_and_student(config)
        trainer = Trainer(teacher, student, config.optim, 16, 4)
        images_BCHW = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        target_BTD = trainer.target(images_BCHW)
        told = Trainer(None, student, config.optim, 16, 4) if known else trainer
        records.append([told.train_step(images_BCHW, target_BTD if known else None) for _ in range(3)])
        weights.append(told.weights())
    assert records[0] == records[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.parametrize("words", [["fp32"], ["bf16"], ["pure_bf16"], ["pure_bf16", "optim.step_in_backward=true"]])
def test_a_step_that_is_not_finite_leaves_weights_and_moments(distill_yaml: Path, words: list[str]) -> None:
    trainer, images_BCHW = _trainer(distill_yaml, f"optim.precision={words[0]}", *words[1:])
    trainer.prime(3)
    trainer.train_step(images_BCHW)
    before = {name: tensor.clone() for name, tensor in trainer.state().items()}
    with pytest.raises(NotFiniteError, match="loss is nan at step 4"):
        trainer.train_step(images_BCHW / 0 * 0)
    after = trainer.state()
    assert trainer.step == 4
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["false", "true"])
def test_weights_that_are_cast_once_give_the_same_gradients(distill_yaml: Path, recompute: str) -> None:
    words = ("optim.precision=bf16", "optim.accumulate=4", f"optim.activation_checkpointing={recompute}")
    trainer, images_BCHW = _trainer(distill_yaml, *words)
    for part_BCHW in images_BCHW.chunk(4):
        (trainer.losses(part_BCHW)[0] / 4).backward()
    one_by_one = {name: weight.grad for name, weight in trainer._own.items()}
    trainer.forget_gradients()
    trainer.gradients(images_BCHW)
    for name, weight in trainer._own.items():
        assert weight.grad is not None
        assert one_by_one[name] is not None
        assert torch.equal(weight.grad, one_by_one[name]), name


def _trainer(distill_yaml: Path, *words: str) -> tuple[Trainer, Tensor]:
    config = load_config(DistillConfig, distill_yaml, words)
    teacher, student, _ = load_teacher_and_student(config)
    images_BCHW = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Trainer(teacher, student, config.optim, 16, 4), images_BCHW
