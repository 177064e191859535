"""Laws of distillation on many processes: the same losses however a step's work is divided, and one end for all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes.distil_many import prepare

from amp.settings.distill import DistillConfig
from amp.settings.reading.yaml_files import load_config

pytestmark = pytest.mark.slow

STEPS = 16
BATCHES = ["data.batch_size=8", "data.shuffle=true", "optim.epochs=2", "output.eval_every=0"]
BATCHES += ["output.save_every=10", "output.keep=3"]


def _losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(len(records)))
    return [record["loss"] for record in records]


@pytest.fixture
def one(distill_yaml: Path) -> list[float]:
    """The losses of one process, whose checkpoint of step 10 is in one/."""
    folder = distill_yaml.parent / "one"
    config = load_config(DistillConfig, distill_yaml, [*BATCHES, f"output.dir={folder}"])
    prepare(config).train()
    losses = _losses(folder)
    assert len(losses) == STEPS
    return losses


@pytest.mark.parametrize("processes", [2, 4])
def test_however_the_work_is_divided_the_losses_are_those_of_one_process(
    processes: int, one: list[float], distill_yaml: Path, launch: Callable[..., Any]
) -> None:
    home = distill_yaml.parent
    shutil.copytree(home / "one" / "checkpoints" / "step_0000010", home / "resumed" / "checkpoints" / "step_0000010")
    shutil.copy(home / "one" / "log.jsonl", home / "resumed")
    common = ",".join(BATCHES)
    sharded = f"{common},optim.parallel=fsdp,optim.activation_checkpointing=2"
    runs = {
        "ddp": f"{common},optim.accumulate=2",
        "fsdp": sharded,
    }
    if processes == 2:
        runs |= {"resumed": sharded, "interrupted": common}
    done = launch(
        processes, "tests/processes/distil_many.py", distill_yaml, *(f"{n}:{words}" for n, words in runs.items())
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = {name: json.loads((home / name / "digests.json").read_text()) for name in runs}
    for name in ("ddp", "fsdp"):
        assert _losses(home / name) == pytest.approx(one, rel=1e-5), name
        assert len({digest for digest, _, _ in told[name]}) == 1, f"{name}: the processes' weights differ"
    assert _losses(home / "ddp") == pytest.approx(_losses(home / "fsdp"), rel=1e-5)
    whole = told["ddp"][0][1]
    shards = [size for _, size, _ in told["fsdp"]]
    assert sum(shards) == whole
    assert max(shards) < 1.1 * whole / processes
    if processes == 4:
        return
    assert _losses(home / "resumed") == pytest.approx(one, rel=1e-5)
    assert "resuming after step 10 of 16" in done.stdout
    # One process was asked to stop; all of them end after the same step, which is in the checkpoint.
    assert {tuple(stopped) for _, _, stopped in told["interrupted"]} == {
        (
            143,
            "SIGTERM after step 4 of 16; run the same command to continue from "
            f"{home}/interrupted/checkpoints/step_0000004",
        )
    }
    assert _losses(home / "interrupted") == pytest.approx(one[:4], rel=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo's own look at it
def test_dividing_a_step_on_one_process_changes_rounding_alone(
    one: list[float], distill_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **more: compiled(*a, **more, backend="eager"))
    for words in ("optim.accumulate=4", "optim.activation_checkpointing=true", "optim.compile=true"):
        folder = distill_yaml.parent / words
        loop = prepare(load_config(DistillConfig, distill_yaml, [*BATCHES, words, f"output.dir={folder}"]))
        names = list(loop.trainer.student.visual.state_dict())
        assert not any("wrapped" in name or "orig_mod" in name for name in names)
        loop.train()
        assert _losses(folder) == pytest.approx(one, rel=1e-5), words


def test_when_one_process_fails_all_end_and_one_line_says_why(
    distill_yaml: Path, tmp_path: Path, launch: Callable[..., Any]
) -> None:
    images = tmp_path / "images" / "train"
    shutil.copytree(load_config(DistillConfig, distill_yaml).data.root, tmp_path / "images")
    broken = sorted(images.rglob("*.png"))[63]
    broken.write_bytes(b"<html>404</html>")
    words = ["data.strict=true", f"data.root={tmp_path}/images", "output.save_every=1"]
    done = launch(2, "distill.py", "--config_file", distill_yaml, *(w for word in words for w in ("--set", word)))
    assert done.returncode != 0
    assert done.stderr.count(f"error: data.strict: {broken}: broken image") == 1
    assert not list((tmp_path / "out" / "checkpoints").glob(".*"))
    assert (tmp_path / "out" / "checkpoints" / "step_0000003" / "state.json").exists()
