"""`amp.distill`: the loop of distill.py, in memory; teacher and student keep their states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import refusal
from helpers.numbered_images import write_images
from helpers.objects import TINY, equal, hooks, tiny_vit, weights_of
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import amp
from amp.settings.distill import DistillConfig
from amp.settings.model import ModelSettings
from amp.settings.reading.yaml_files import load_config
from amp.towers import build_tower


@pytest.fixture
def vit() -> nn.Module:
    return tiny_vit()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def prune(model: nn.Module, images: Tensor) -> Any:
    """A student, soon made."""
    return amp.prune(model, images, params=0.7, compensation="none")


@pytest.mark.slow
def test_a_student_learns_as_by_the_script(
    distill_yaml: Path, tmp_path: Path, golden_images: Path, call: Callable[..., Any]
) -> None:
    code, _, err = call("distill.py", "--config_file", distill_yaml)
    assert code == 0, err
    config = load_config(DistillConfig, distill_yaml)
    student, _, _ = amp.load_pruned(tmp_path / "student")
    teacher = build_tower(config.teacher.as_model("fp32")).model
    steps = 5 * (len(list((golden_images / "train").rglob("*.png"))) // 16)
    optim = {"base_lr": 0.02, "min_lr": 1e-4, "warmup_steps": steps // 5, "precision": "fp32"}
    data = {"batch_size": 16, "augment": "none", "shuffle": False, "num_workers": 0}
    distilled = amp.distill(student, teacher, golden_images, steps=steps, data=data, optim=optim)
    assert distilled.model is student
    assert len(distilled.log) == steps
    assert equal(weights_of(student), load_file(tmp_path / "out" / "distilled" / "model.safetensors"))


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_teacher_and_student_keep_their_states(vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    vit.train()
    pruned = prune(vit, images)
    before, student = weights_of(vit), weights_of(pruned.model)
    found = amp.distill(pruned, vit, images, steps=4, base_lr=0.05)
    assert equal(before, weights_of(vit))
    assert not equal(student, weights_of(pruned.model))
    assert vit.training
    assert pruned.model.training
    assert all(parameter.requires_grad for parameter in [*vit.parameters(), *pruned.model.parameters()])
    assert hooks(vit) == hooks(pruned.model) == 0
    assert str(found).startswith("4 steps; loss ")
    found.plot().savefig(tmp_path / "loss.png")
    amp.save(pruned, tmp_path / "folder")
    assert equal(weights_of(amp.load_pruned(tmp_path / "folder")[0]), weights_of(pruned.model))


@pytest.mark.slow
def test_an_open_clip_model_in_bf16_is_saved_and_trained(
    golden_model: ModelSettings, images: Tensor, tmp_path: Path
) -> None:
    """Its norms, its tokens' places and what of its text tower comes first are in fp32."""
    dense = build_tower(golden_model.model_copy(update={"precision": "bf16"})).model
    pruned = prune(dense, images)
    amp.save(pruned, tmp_path / "folder")
    before = weights_of(pruned.model)
    assert equal(weights_of(amp.load_pruned(tmp_path / "folder")[0]), before)
    losses = [record["loss"] for record in amp.distill(pruned, dense, images, steps=8, base_lr=0.005).log]
    assert losses[-1] < losses[0]
    after = weights_of(pruned.model)
    assert {name: own.dtype for name, own in after.items()} == {name: own.dtype for name, own in before.items()}
    assert not torch.equal(after["visual.class_embedding"], before["visual.class_embedding"])
    assert after["visual.class_embedding"].dtype == torch.float32


@pytest.mark.slow
def test_a_loader_is_gone_through_again_and_bf16_stays(vit: nn.Module, images: Tensor) -> None:
    vit.bfloat16()
    pruned = prune(vit, images)
    loader = DataLoader(TensorDataset(images, torch.zeros(len(images))), batch_size=20)
    assert len(amp.distill(pruned, vit, loader, steps=6).log) == 6
    assert {parameter.dtype for parameter in pruned.model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_the_batch_is_as_large_as_the_images_are_many(vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    pruned = prune(vit, images)
    write_images(tmp_path, *(f"{index:02d}.png" for index in range(24)))  # of which 18 are not held out
    for few, count in ((list(images[:9]), 9), (tmp_path, 18)):
        assert len(amp.distill(pruned, vit, few, steps=2, augment="none").log) == 2
        assert len(amp.distill(pruned, vit, few, steps=2, augment="none", accumulate=2).log) == 2
        told = refusal(lambda few=few: amp.distill(pruned, vit, few, batch_size=20))
        assert told.startswith(f"batch_size: 20 is more than the {count} images ")
    assert refusal(lambda: amp.distill(pruned, vit, [images[0]])) == "images: 1 image given; at least 2 are needed"


NOT_ALLOWED: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "amp.distill: steps: 0 is not allowed; give a whole number, 1 or more"),
    ({"epochs": 3}, "amp.distill: epochs: not used here; steps and warmup_steps set the length"),
    ({"base_ler": 1}, "base_ler: no argument of this name; did you mean 'base_lr'?"),
    ({"output": {"dir": "x"}}, "amp.distill: output: no argument of this name"),
    ({"activation_checkpointing": True}, "here call model.set_grad_checkpointing()"),
]


@pytest.mark.slow
def test_settings_that_are_not_allowed_are_told(vit: nn.Module, images: Tensor) -> None:
    pruned = prune(vit, images)
    for said, words in NOT_ALLOWED:
        assert words in refusal(lambda said=said: amp.distill(pruned, vit, images, **said))


@pytest.mark.slow
def test_models_that_do_not_belong_together_are_refused(vit: nn.Module, images: Tensor) -> None:
    pruned = prune(vit, images)
    assert "student: VisionTransformer is not a result of amp.prune" in refusal(lambda: amp.distill(vit, vit, images))
    before = weights_of(pruned.model)
    other = timm.create_model("vit_tiny_patch16_224", **{**TINY, "num_classes": 4})
    told = "teacher: does not match the student: its head.bias is [4], the student's is [5]"
    assert told in refusal(lambda: amp.distill(pruned, other, images))
    assert equal(before, weights_of(pruned.model))
    assert "teacher: is the student itself" in refusal(lambda: amp.distill(pruned, pruned.model, images))
    assert "model: torch.nn" in refusal(lambda: amp.distill(pruned, nn.Linear(3, 3), images))
    once = (image for image in images)
    assert "end after 1 of 3 steps; give a loader" in refusal(lambda: amp.distill(pruned, vit, once, steps=3))
