"""Heads and neurons under one budget, from the scores to a folder."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, refusal
from torch import Tensor

import amp
from amp.models.folder import load_tower, read_folder_config, save_tower
from amp.pruning.measure.networks import keep_units, rank
from amp.pruning.refit import open_compensation
from amp.scoring.scores_file import load_scores
from amp.settings.model import ModelSettings
from amp.settings.prune import SearchSettings
from amp.statistics.saved_sums import SavedSums
from amp.towers import Tower, build_tower, with_heads

KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 6}
Call = Callable[..., tuple[int, str, str]]


def tower_with_copies() -> Tower:
    """Of every attention the last three heads are the first three."""
    tower = with_heads(build_tower(ModelSettings(frame="timm", name="vit_tiny_patch16_224", kwargs=KWARGS)))
    with torch.no_grad():
        for slot in tower.heads:
            rows = slot.module.qkv.weight.view(3, 6, 8, 48)
            rows.mul_(8)
            rows[:, 3:] = rows[:, :3]
            slot.out_projection.weight.mul_(8)
        for mlp in tower.slots:
            for linear in mlp.linears:
                linear.weight.mul_(20)
    return tower


@pytest.mark.parametrize("compensation", ["ridge", "sequential"])
def test_copies_stand_in_for_the_heads_that_go(compensation: Any) -> None:
    tower = tower_with_copies()
    batches = list(torch.randn(6, 16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    dense_BD = tower.feature(batches[0])
    scores = [torch.arange(slot.num_units, 0.0, -1.0) for slot in tower.units]
    orders = [slot.inputs_of(rank(score_U)) for slot, score_U in zip(tower.units, scores, strict=True)]
    settings = SearchSettings(compensation=compensation, damping=1e-9, refit_steps=0)
    keep_units(tower, scores, [3, 192, 3, 192], open_compensation(tower, orders, settings, lambda: batches))
    assert [slot.held for slot in tower.heads] == [[0, 1, 2]] * 2
    torch.testing.assert_close(tower.feature(batches[0]), dense_BD, rtol=0, atol=1e-3 * float(dense_BD.abs().max()))


@pytest.mark.slow
def test_one_budget_holds_heads_and_neurons() -> None:
    model = tower_with_copies().visual
    images = torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pruned = amp.prune(model, images, flops=0.8, attention="heads", batch_size=16, refit_steps=0)
    own = pruned.report.record
    assert own["dense_heads"] == [6, 6]
    assert sum(own["heads"]) < 12
    assert sum(own["widths"]) < 384
    assert [block.attn.num_heads for block in pruned.model.blocks] == own["heads"]
    assert own["flops"]["pruned"] == pytest.approx(0.8 * own["flops"]["dense"], rel=0.01)
    small = pruned.resize(params=0.6).report
    assert all(1 <= less <= heads for less, heads in zip(small.heads, own["heads"], strict=True))


@pytest.mark.slow
def test_a_folder_tells_its_heads(tmp_path: Path) -> None:
    tower, images = tower_with_copies(), torch.randn(2, 3, 32, 32)
    kept = [list(range(40)), list(range(7, 90))]
    for slot, indices in zip(tower.units, [[0, 2, 5], kept[0], [4], kept[1]], strict=True):
        slot.keep(torch.tensor(indices))
    save_tower(tower, kept, {}, tmp_path / "one")
    save_tower(tower, kept, {}, tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    config = read_folder_config(tmp_path / "one")
    assert (config.heads, config.counts) == (((0, 2, 5), (4,)), [3, 40, 1, 83])
    found = load_tower(tmp_path / "one")
    assert torch.equal(found.feature(images), tower.feature(images))
    assert [slot.held for slot in found.heads] == [[0, 2, 5], [4]]
    model, _, _ = amp.load_pruned(tmp_path / "one")
    amp.save(model, tmp_path / "three")
    assert (tmp_path / "three" / "config.json").read_bytes() == (tmp_path / "one" / "config.json").read_bytes()
    path = tmp_path / "one" / "config.json"
    said = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
    path.write_text(json.dumps(said | {"heads": [[0, 6], [1]]}))
    assert "indices must be distinct, 0-5" in refusal(lambda: load_tower(tmp_path / "one"))


def test_settings_that_do_not_go_with_heads_are_told() -> None:
    for own, said in (
        ({}, "needs allocation: global, not search"),
        ({"allocation": "global", "target": {"latency": 0.5}}, "needs a target of params or flops"),
    ):
        with pytest.raises(ValueError, match=said):
            SearchSettings.model_validate({"attention": "heads", **own})
    assert "attention" not in SearchSettings().decisive()
    assert "needs score.criterion: reconstruction" in refusal(
        lambda: amp.prune(tower_with_copies().visual, torch.randn(8, 3, 32, 32), 0.7, attention="heads", criterion="kl")
    )


@pytest.fixture
def heads_yaml(tmp_path: Path, golden_images: Path) -> Path:
    path = tmp_path / "heads.yaml"
    path.write_text(f"""
model: {{frame: timm, name: vit_tiny_patch16_224, kwargs: {json.dumps(KWARGS)}}}
data: {{name: imagefolder, root: {golden_images}, batch_size: 16, num_workers: 0}}
score: {{criterion: reconstruction, save_every: 1}}
prune: {{attention: heads, allocation: global, target: {{flops: 0.6}}, compensation: sequential, refit_steps: 2,
         num_calibration_samples: 32}}
output: {{dir: {tmp_path}/out}}
""")
    return path


def _scores(folder: Path) -> list[Tensor]:
    return [score for name in ("scores", "head_scores") for score in load_scores(folder / f"{name}.safetensors")[0]]


@pytest.mark.slow
def test_killed_or_on_two_processes_the_commands_end_alike(
    heads_yaml: Path,
    tmp_path: Path,
    call: Call,
    launch: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = ("--config_file", heads_yaml, "--set")
    for script in ("main_score.py", "main_prune.py"):
        code, _, err = call(script, *own, f"output.dir={tmp_path}/whole")
        assert code == 0, err
    step, counted = SavedSums.step, [0]

    def step_or_stop(self: SavedSums, scorer: Any) -> None:
        step(self, scorer)
        counted[0] += 1
        if counted[0] == 6:  # of four batches, the second of the pass for heads
            raise KeyboardInterrupt

    monkeypatch.setattr(SavedSums, "step", step_or_stop)
    assert call("main_score.py", *own, f"output.dir={tmp_path}/killed")[0] != 0
    monkeypatch.undo()
    assert (tmp_path / "killed" / "scores.safetensors").exists()
    assert not (tmp_path / "killed" / "head_scores.safetensors").exists()
    said = call("main_prune.py", *own, f"output.dir={tmp_path}/killed")[2]
    assert "head_scores.safetensors: no such file; run" in said
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    code, out, err = call("main_prune.py", *own, f"output.dir={tmp_path}/alone", "--set", "prune.attention=auto")
    assert code == 0, err
    assert "no attention heads are removed" in out + err
    assert call("main_score.py", *own, f"output.dir={tmp_path}/killed")[0] == 0
    assert {path.name for path in (tmp_path / "killed").iterdir()} <= {
        "scores.safetensors",
        "head_scores.safetensors",
        "lock",
        ".lock",
    }
    for one, other in zip(_scores(tmp_path / "whole"), _scores(tmp_path / "killed"), strict=True):
        assert torch.equal(one, other)
    for script in ("main_score.py", "main_prune.py"):
        done = launch(2, script, *own, f"output.dir={tmp_path}/two")
        assert done.returncode == 0, done.stderr
    for one, other in zip(_scores(tmp_path / "whole"), _scores(tmp_path / "two"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6 * float(one.max()))
    whole, two = (json.loads((tmp_path / name / "prune.json").read_text()) for name in ("whole", "two"))
    assert whole["heads"] == two["heads"]
    assert whole["flops"]["pruned"] == pytest.approx(0.6 * whole["flops"]["dense"], rel=0.03)
    config = read_folder_config(tmp_path / "whole" / "pruned")
    assert [len(indices) for indices in config.heads or ()] == whole["heads"]


@pytest.mark.slow
def test_attention_that_is_called_twice_keeps_its_heads(capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = tower_with_copies().visual

    class Twice(type(model.blocks[0])):  # type: ignore[misc]
        def forward(self, x: Tensor, **others: Any) -> Tensor:
            for _ in range(2):
                x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    for block in model.blocks:
        block.__class__ = Twice
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    said: Any = {"batch_size": 16, "compensation": "ridge"}
    assert "heads" not in amp.prune(model, images, 0.8, **said).report.record
    told = "some attention module of this VisionTransformer is not called exactly once"
    assert told in capsys.readouterr().out
    assert told in refusal(lambda: amp.prune(model, images, 0.8, **said, attention="heads"))


@pytest.mark.slow
def test_auto_removes_heads_where_the_settings_and_the_model_allow_it(capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    said: Any = {"flops": 0.6, "batch_size": 16, "refit_steps": 0}
    auto, heads, none = (
        amp.prune(tower_with_copies().visual, images, **said, attention=own) for own in ("auto", "heads", "none")
    )
    for key, tensor in heads.model.state_dict().items():
        assert torch.equal(auto.model.state_dict()[key], tensor)
    assert auto.report.heads == heads.report.heads
    assert auto.report.feature_cosine > none.report.feature_cosine
    other = amp.prune(tower_with_copies().visual, images, 0.8, criterion="kl", compensation="none", batch_size=16)
    assert "heads" not in other.report.record, "nothing scores them"
    capsys.readouterr()
    whole = build_tower(ModelSettings(frame="open_clip", name=str(GOLDEN / "tiny-clip.json"))).model
    assert "heads" not in amp.prune(whole, images, **said, attention="auto").report.record
    assert "only neurons: MultiheadAttention" in capsys.readouterr().out
