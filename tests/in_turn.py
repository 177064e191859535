"""Runs scripts in one process, one after another; for tests, since torch takes seconds to import.

torchrun --nproc_per_node=2 tests/in_turn.py SCRIPT WORDS... -- SCRIPT WORDS...
"""

import runpy
import sys
from collections.abc import Sequence
from itertools import groupby
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(words: Sequence[str]) -> None:
    """A script, called with its name and its words, in this process."""
    sys.argv = list(words)
    runpy.run_path(sys.argv[0], run_name="__main__")


def start(*words: str) -> BaseProcess:
    """The same in a new process, which has torch already: the first call's server imports it for all."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "open_clip"])
    process = context.Process(target=run, args=(words,))
    process.start()
    return process


def share_process_group() -> None:
    """The first script's process group serves all: torchrun's processes meet once."""
    import torch.distributed as dist

    begin = dist.init_process_group
    dist.init_process_group = lambda *given, **named: dist.is_initialized() or begin(*given, **named)
    dist.destroy_process_group = lambda: None


if __name__ == "__main__":
    share_process_group()
    sys.path.insert(0, str(ROOT))
    for is_end, script in groupby(sys.argv[1:], lambda word: word == "--"):
        if not is_end:
            run(list(script))
