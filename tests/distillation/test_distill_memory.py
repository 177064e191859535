"""The plan of a GPU's memory: exact where it can be, and the same whoever shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amp.distillation.memory import plan_memory
from amp.distillation.optimizer import make_optimizer, moments, prime
from amp.distillation.students import load_teacher_and_student
from amp.models.folder import load_tower
from amp.settings.distill import DistillConfig
from amp.settings.reading.yaml_files import load_config

pytestmark = pytest.mark.slow


def _plan(yaml: Path, num_gpus: int, *words: str) -> dict[str, float]:
    return plan_memory(load_config(DistillConfig, yaml, words), num_gpus)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "pure_bf16"])
def test_weights_gradients_and_moments_are_counted_to_the_byte(distill_yaml: Path, precision: str) -> None:
    config = load_config(DistillConfig, distill_yaml, [f"optim.precision={precision}"])
    teacher, student, _ = load_teacher_and_student(config)
    trained = [p for p in student.visual.parameters() if p.requires_grad]
    optimizer = make_optimizer(trained, config.optim)
    prime(optimizer, 1)
    plan = plan_memory(config, 1)
    assert plan["teacher weights"] == sum(p.nbytes for p in teacher.visual.parameters())
    assert plan["student weights"] == sum(p.nbytes for p in student.visual.parameters())
    assert plan["gradients"] == sum(p.nbytes for p in trained)
    assert plan["optimizer"] == sum(t.nbytes for p in trained for t in moments(optimizer, p).values())
    assert plan["total"] < sum(size for name, size in plan.items() if name != "total")


def test_activations_are_those_that_autograd_keeps(distill_yaml: Path) -> None:
    config = load_config(DistillConfig, distill_yaml)
    student = load_tower(config.student.pretrained)
    student.visual.requires_grad_(True)
    kept: dict[int, torch.Tensor] = {}
    weights = {p.data_ptr() for p in student.visual.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        student.visual(torch.zeros(16, 3, 32, 32))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert plan_memory(config, 1)["activations"] == pytest.approx(real, rel=0.25)


def test_shards_micro_batches_and_recomputing_need_less(distill_yaml: Path) -> None:
    one, two = _plan(distill_yaml, 1), _plan(distill_yaml, 2)
    sharded = _plan(distill_yaml, 2, "optim.parallel=fsdp")
    for key in ("teacher weights", "student weights", "gradients", "optimizer"):
        assert one[key] == two[key] == 2 * sharded[key]
    assert one["activations"] == 2 * two["activations"]
    assert _plan(distill_yaml, 1, "optim.accumulate=2")["activations"] == two["activations"]
    some, all_but_one = (_plan(distill_yaml, 1, f"optim.activation_checkpointing={n}") for n in ("2", "true"))
    assert all_but_one["activations"] < some["activations"] < one["activations"]


def test_dry_run_needs_no_student_and_writes_nothing(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    words: list[Any] = ["--config_file", distill_yaml, "--dry_run"]
    code, out, _ = call("distill.py", *words)
    assert (code, "as pruned" in out, "on each of 8 GPUs" in out) == (0, True, True)
    code, out, _ = call("distill.py", *words, "--num_gpus", "2", "--set", "student.pretrained=not/there/pruned")
    assert (code, "an upper bound" in out, "on each of 2 GPUs" in out) == (0, True, True)
    for name in ("teacher weights", "gradients", "optimizer", "activations", "total"):
        assert name in out
    assert not (tmp_path / "out").exists()
    code, _, err = call("distill.py", *words, "--num_gpus", "3")
    assert (code, "--num_gpus: data.batch_size 16 is not divisible by 3 GPUs" in err) == (2, True)
