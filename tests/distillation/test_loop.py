"""Runs of distillation: golden losses, resume equals uninterrupted, what the files hold."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.distillation import Loop, RunKeeper, Trainer, distillation_loss, share_head
from amp.distillation.keeping import TAGS
from amp.errors import StoppedError
from amp.models.folder import load_tower, read_folder_config, save_tower
from amp.run.run import Run
from amp.settings.distill import DistillConfig
from amp.settings.reading.yaml_files import load_config
from amp.towers import TokenReadout, Tower, build_tower

HEAD = {"ln_post.weight", "ln_post.bias", "proj"}


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _check_golden(folder: Path, golden_distill: dict[str, Any]) -> None:
    steps = _log(folder)
    assert [s["step"] for s in steps] == list(range(20))
    for key in ("loss", "loss_cls", "loss_patch"):
        assert [s[key] for s in steps] == pytest.approx([s[key] for s in golden_distill["steps"]], rel=1e-3)
    for key in ("lr", "weight_decay"):
        assert [s[key] for s in steps] == pytest.approx([s[key] for s in golden_distill["steps"]], rel=1e-12)
    weights = load_file(folder / "distilled" / "model.safetensors")
    for name, norm in golden_distill["final_norms"].items():
        weight = weights[f"visual.{name}"]
        if name.endswith("in_proj_bias"):
            continue  # Softmax cancels a bias of the keys: its gradient is rounding, which Adam scales up.
        assert weight.norm().item() == pytest.approx(norm, rel=1e-3), name


def test_golden_distillation(
    distill_yaml: Path, tmp_path: Path, golden_distill: dict[str, Any], call: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = call("distill.py", "--config_file", distill_yaml)
    assert code == 0
    assert "distilled" in out
    _check_golden(tmp_path / "out", golden_distill)
    board = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload().Tags()["scalars"]
    assert {"loss/total", "schedule/learning rate", "speed/images per second"} <= {*board} <= {*TAGS.values()}
    before = (tmp_path / "out" / "distilled" / "model.safetensors").stat().st_mtime_ns
    code, out, _ = call("distill.py", "--config_file", distill_yaml)
    assert (code, "already done" in out) == (0, True)
    assert (tmp_path / "out" / "distilled" / "model.safetensors").stat().st_mtime_ns == before
    code, _, err = call("distill.py", "--config_file", distill_yaml, "--set", "optim.epochs=6")
    assert code == 2
    assert "optim.epochs = 5, but this run has 6" in err
    _check_what_is_done(distill_yaml, tmp_path, call)


def _check_what_is_done(yaml: Path, home: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """An output that is gone is written again; weights of another student under the same name are another run."""
    distilled, words = home / "out" / "distilled", ("--config_file", yaml)
    before = (distilled / "model.safetensors").read_bytes()
    (distilled / "model.safetensors").unlink()
    code, out, _ = call("distill.py", *words)
    assert (code, "already done" in out, "resuming after step 20 of 20" in out) == (0, False, True)
    assert (distilled / "model.safetensors").read_bytes() == before
    student = load_tower(home / "student")
    kept = read_folder_config(home / "student").kept
    with torch.no_grad():
        next(student.visual.parameters()).add_(1)
    save_tower(student, kept, {}, home / "student")
    for left in ("distilled", "checkpoints/step_0000020"):
        code, _, err = call("distill.py", *words)
        place = home / "out" / left
        assert (code, err.count("\n")) == (2, 1)
        assert f"{place.parent} holds another run: {place.name} was made before the student changed" in err
        shutil.rmtree(home / "out" / left.partition("/")[0])


def test_two_processes_with_a_shard_each_give_the_golden_numbers(
    distill_yaml: Path, tmp_path: Path, golden_distill: dict[str, Any], launch: Callable[..., Any]
) -> None:
    words = ["--set", "optim.parallel=fsdp", "--set", "optim.activation_checkpointing=2"]
    done = launch(2, "distill.py", "--config_file", distill_yaml, *words)
    assert done.returncode == 0, done.stderr
    _check_golden(tmp_path / "out", golden_distill)


@pytest.mark.slow
def test_resumed_equals_uninterrupted(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config_file", distill_yaml, "--set", "output.save_every=3", "--set", "data.shuffle=true"]
    words += ["--set", "data.augment=dinov2"]
    assert call("distill.py", *words, "--set", f"output.dir={tmp_path}/whole")[0] == 0
    step = Trainer.train_step
    for killed_after in (1, 6, 13):

        def killed(self: Trainer, *given: Any, killed_after: int = killed_after, **named: Any) -> Any:
            if self.step == killed_after:
                raise KeyboardInterrupt
            return step(self, *given, **named)

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "train_step", killed)
            assert call("distill.py", *words)[0] == 130
        assert not (tmp_path / "out" / "distilled").exists()
        code, out, _ = call("distill.py", *words)
        assert code == 0
        assert (f"resuming after step {killed_after // 3 * 3} of 20" in out) == (killed_after > 2)
        for file in ("log.jsonl", "distilled/model.safetensors", "distilled/config.json"):
            assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
def test_checkpoint_of_other_settings_is_refused(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config_file", distill_yaml, "--set", "output.save_every=2"]
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_remaining", _first(Loop._remaining, 3))
        patched.setattr("amp.models.folder.save_tower", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call("distill.py", *words)[0] == 130
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["step_0000002"]
    code, _, err = call("distill.py", *words, "--set", "optim.base_lr=0.01")
    assert code == 2
    assert "step_0000002 was made with optim.base_lr = 0.02, but this run has 0.01" in err


def _first(remaining: Callable[[Loop], Any], count: int) -> Callable[[Loop], Any]:
    return lambda self: (images for images, _ in zip(remaining(self), range(count), strict=False))


def _pair(distill_yaml: Path) -> tuple[DistillConfig, Tower, Tower]:
    config = load_config(DistillConfig, distill_yaml)
    return config, build_tower(config.teacher.as_model("fp32")), load_tower(config.student.pretrained)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "pure_bf16"])
def test_text_tower_and_head_come_out_unchanged(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], precision: str
) -> None:
    words = ["--set", f"optim.precision={precision}", "--set", "optim.epochs=2"]
    assert call("distill.py", "--config_file", distill_yaml, *words)[0] == 0
    dense = load_file(GOLDEN / "tiny-clip.safetensors")
    distilled = load_file(tmp_path / "out" / "distilled" / "model.safetensors")
    shared = ("visual.ln_post", "visual.proj")
    for name, weight in dense.items():
        same = not name.startswith("visual.") or name.startswith(shared)
        assert (distilled[name].shape == weight.shape and torch.equal(distilled[name], weight)) == same, name


def test_nan_stops_the_run_and_says_where(distill_yaml: Path) -> None:
    config, teacher, student = _pair(distill_yaml)
    share_head(teacher, student, HEAD)
    batches = Batches(list_images(config.data, "train"), lambda _: torch.full((3, 32, 32), torch.nan), config.data)
    trainer = Trainer(teacher, student, config.optim, 16, len(batches))
    keeper = RunKeeper(Run(config, Path(config.output.dir), {}))
    loop = Loop(trainer, batches, keeper, config.output)
    with pytest.raises(StoppedError, match=r"loss is nan at step 0; last good checkpoint: none") as caught:
        loop.train()
    assert caught.value.code == 1
    listed = distill_yaml.parent / "out" / "batch_of_step_0.txt"
    assert str(listed) in str(caught.value)
    files = sorted(Path(config.data.root, "train").rglob("*.png"))[:16]
    assert listed.read_text().splitlines() == [str(file) for file in files]


@pytest.mark.slow
def test_loss_on_held_out_images_is_the_loss_of_a_batch(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    words = ["--config_file", distill_yaml, "--set", "output.eval_every=8", "--set", "output.save_every=3"]
    words += ["--set", "output.keep=1"]
    code, out, _ = call("distill.py", *words)
    assert code == 0
    seen = {step["step"]: step["val_loss"] for step in _log(tmp_path / "out") if "val_loss" in step}
    assert sorted(seen) == [7, 15, 19]
    best = min(seen, key=lambda step: seen[step]) + 1
    names = {path.name for path in (tmp_path / "out" / "checkpoints").iterdir()}
    assert names == {"step_0000020", f"step_{best:07d}"}
    config, teacher, _ = _pair(distill_yaml)
    images = Batches(list_images(config.data, "val"), teacher.transform, config.data)
    told = re.findall(r"loss on held-out images: (\S+) (before|after)", out)
    assert [moment for _, moment in told] == ["before", "after"]
    folders = [Path(config.student.pretrained), tmp_path / "out" / "distilled"]
    for folder, (figure, _) in zip(folders, told, strict=True):
        student = load_tower(folder)
        with torch.no_grad():
            pairs = [(TokenReadout(student)(batch), TokenReadout(teacher)(batch)) for batch in images]
            losses = [distillation_loss(*pair, 1)[0].item() for pair in pairs]
        assert float(figure) == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    assert seen[19] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.slow
def test_without_held_out_images_the_run_says_so_and_goes_on(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    shutil.copytree(Path(load_config(DistillConfig, distill_yaml).data.root, "train"), tmp_path / "images" / "train")
    code, out, _ = call("distill.py", "--config_file", distill_yaml, "--set", f"data.root={tmp_path}/images")
    assert code == 0
    assert f"the loss on held-out images is not measured: data.root: {tmp_path}/images: has no folder 'val'" in out
    assert not any("val_loss" in step for step in _log(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.min_lr=0.01", "optim.min_lr 0.01 is above the peak rate 0.00125 = base_lr * batch_size / 256"),
        ("optim.base_lr=20", "optim.base_lr: 20 is not allowed"),
        ("optim.epochs=0", "optim.epochs: 0 is not allowed"),
        ("optim.epochs=1", "warmup_epochs 1 must be less than epochs 1"),
        (
            "optim.accumulate=3",
            "optim.accumulate: a batch of 16 images does not divide into 3 micro-batches on each of 1 proc",
        ),
        ("data.batch_size=65", "data.batch_size: 65 is more than the 64 images"),
    ],
)
def test_settings_that_make_no_sense(
    distill_yaml: Path, call: Callable[..., tuple[int, str, str]], word: str, message: str
) -> None:
    code, _, err = call("distill.py", "--config_file", distill_yaml, "--set", word)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
