"""Laws of workers: what they hold open and what shared memory they need; their death is a line, never a wait."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, refusal
from helpers.numbered_images import MAY_WARN_OF_WORKERS, epoch, joined, world, write_images
from processes.numbered_items import Numbers
from torch.utils.data import default_collate

from amp.data.loading import read_batches
from amp.evaluation.sharding import ShardedBatches

pytestmark = MAY_WARN_OF_WORKERS


class Doomed(Numbers):
    """Its fifth item ends the worker that reads it, as the system does where memory runs out."""

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def in_two(script: str) -> subprocess.CompletedProcess[str]:
    """A process of its own whose two workers may hold few files open, or share little memory."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


@pytest.mark.slow
def test_many_batches_are_kept_with_few_files_open() -> None:
    run = in_two("""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from processes.numbered_items import Numbers
from torch.utils.data import default_collate
from amp.evaluation.sharding import ShardedBatches
kept = list(ShardedBatches(2, 2).batches(Numbers(), default_collate, "--x"))
assert [labels.tolist() for _, (_, labels) in kept] == [[i, i + 1] for i in range(0, 2600, 2)]
assert [images[:, 0].tolist() for _, (images, _) in kept] == [[i, i + 1] for i in range(0, 2600, 2)]
""")
    assert run.returncode == 0, run.stderr


def test_without_shared_memory_batches_come_through_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, *(f"train/{i:03d}.png" for i in range(16)))

    def refuse(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    plain = epoch(tmp_path, world(), name="imagenet1k", num_workers=0)
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)  # workers are forked
    assert epoch(tmp_path, world(), name="imagenet1k", num_workers=2) == plain
    of_two = ShardedBatches(4, 2).batches(torch.utils.data.Subset(Numbers(), range(10)), default_collate, "--x")
    assert joined(labels.tolist() for _, (_, labels) in of_two) == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_a_killed_worker_is_one_line(monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    if full:
        monkeypatch.setattr(torch.Tensor, "share_memory_", lambda _: (_ for _ in ()).throw(RuntimeError))
    started = time.monotonic()
    batching = {"batch_sampler": [[i] for i in range(100)]}
    message = refusal(lambda: list(read_batches(Doomed(), default_collate, 2, "--num_workers", **batching)))
    assert message.startswith("--num_workers: a worker that reads images was killed (signal 9), most often because")
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_a_worker_killed_between_batches_interrupts_nothing() -> None:
    others = torch.multiprocessing.active_children()
    batches = read_batches(Numbers(), default_collate, 1, "--num_workers", batch_sampler=[[i] for i in range(100)])
    next(batches)
    (worker,) = (child for child in torch.multiprocessing.active_children() if child not in others)
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)  # another's work goes on
    assert "was killed (signal 9)" in refusal(lambda: list(batches))


@pytest.mark.slow
def test_a_batch_that_is_still_awaited_holds_up_no_exit() -> None:
    run = in_two("""
import torch
from processes.numbered_items import Numbers
from torch.utils.data import default_collate
from amp.data.loading import read_batches
read = read_batches(Numbers(), default_collate, 2, "--x", batch_sampler=[[i] for i in range(100)])
next(read)
import builtins
builtins.kept = [read]
builtins.kept.append(builtins.kept)
""")
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0, reason="needs root")
@pytest.mark.slow
def test_a_tiny_shared_memory_is_enough(tmp_path: Path) -> None:
    script = tmp_path / "read.py"
    script.write_text("""
import torch
from torch.utils.data import default_collate
from amp.data.loading import read_batches
class Large(torch.utils.data.Dataset):
    def __len__(self): return 32
    def __getitem__(self, index): return torch.full((3, 224, 224), float(index))
found = [batch[:, 0, 0, 0].tolist() for batch in read_batches(
    Large(), torch.stack, 2, "--x", batch_sampler=[[i, i + 1, i + 2, i + 3] for i in range(0, 32, 4)])]
assert found == [[i, i + 1, i + 2, i + 3] for i in range(0, 32, 4)], found
""")
    inside = f"mount -t tmpfs -o size=1M tmpfs /dev/shm && exec {sys.executable} -W ignore {script}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["unshare", "-m", "bash", "-c", inside]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
