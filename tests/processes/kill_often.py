"""Kills command lines at random moments, again and again, and compares what they end in with an unkilled run's files.

    PYTHONPATH=tests:. python tests/processes/kill_often.py [--kills 20] [--seed 0] [NAME ...]

Each case runs once to its end, then in the same folder anew: killed (SIGKILL) after a random share of that time, run
again, killed again; whenever a run ends by itself its files are compared and the folder is emptied. Of two processes,
one alone or both are killed. Times are left out of the comparison. Prints a line a case; the exit code is 1 where a
file differs. Not a test of its own: a case takes a minute or more.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
from conftest import GOLDEN
from helpers.fake_benchmarks import build
from PIL import Image
from processes.start import run_processes, started
from safetensors.torch import load_file

TIMES = {"seconds", "reproduce", "checksum"}
MODEL = f"{{frame: open_clip, name: {GOLDEN}/tiny-clip.json, pretrained: {GOLDEN}/tiny-clip.safetensors}}"
RIDGE = ("prune.compensation=ridge", "prune.num_calibration_samples=64", "prune.entropy_increase=0.05")
RACING = ("prune.search=racing", "prune.preset=strict", "data.batch_size=2")
STEPS = ("output.save_every=3", "data.shuffle=true", "data.augment=clip")
WIDTHS = "prune.widths=[100, 7, 256, 31, 64]"
GRACE_SECONDS = 10


@dataclass(frozen=True)
class Case:
    """A command line that is killed.

    Attributes:
        words: the script and its options.
        first: what is run before, in its folder.
        processes: of torchrun.
    """

    words: tuple[str, ...]
    first: tuple[tuple[str, ...], ...] = ()
    processes: int = 1


def _set(script: str, *settings: str) -> tuple[str, ...]:
    words = tuple(part for setting in settings for part in ("--set", setting))
    return (script, "--config_file", "distill.yaml" if script == "distill.py" else "prune.yaml", *words)


PRUNED = (_set("main_score.py"), _set("main_prune.py", WIDTHS))


def cases(home: Path) -> dict[str, Case]:
    """By their names; each writes into home/out. The digit is the number of processes."""
    found = {}
    for number in (1, 2):
        for criterion in ("entropy", "reconstruction"):
            words = _set("main_score.py", "data.batch_size=4", "score.save_every=2", f"score.criterion={criterion}")
            found[f"score_{criterion}_{number}"] = Case(words, processes=number)
        found[f"distil_{number}"] = Case(_set("distill.py", *STEPS), processes=number)
    searches = {
        "plain_1": ("data.batch_size=8", "prune.search=plain"),
        "exact_1": ("data.batch_size=4", "prune.store=disk"),
        "exact_2": ("data.batch_size=4", "prune.store=disk"),
        "racing_1": RACING,
        "racing_ridge_1": (*RACING, *RIDGE),
        "racing_ridge_2": (*RACING, *RIDGE),
        "size_1": (*RACING, "prune.target.flops=0.7"),
        "refit_at_the_end_1": (*RIDGE, WIDTHS),
    }
    for name, settings in searches.items():
        scored = _set("main_score.py", *(word for word in settings if word.startswith("data")))
        found[name] = Case(_set("main_prune.py", *settings), (scored,), int(name[-1]))
    found["compensate_only_1"] = Case((*_set("main_prune.py", *RIDGE), "--compensate_only"), PRUNED)
    model = ("--num_workers", "0", "--batch_size", "4")
    knn = ("--pretrained", f"{home}/student", "--dataset_root", f"{home}/classes", "--output", f"{home}/out/knn.json")
    found["knn_1"] = Case(("eval/eval_knn.py", *model, *knn))
    sets = ("--dataset", "wds/animals", "wds/again", "--dataset_root", f"{home}/sets/{{dataset}}")
    outputs = ("--output", f"{home}/out/zsc", "--save_clf", f"{home}/out/clf")
    found["zsc_1"] = Case(("eval/eval_zsc.py", "--model", f"{home}/clip.json", *model, *sets, *outputs))
    return found


def prepare(home: Path) -> None:
    """Images, settings, a student and data to measure on."""
    arrays = np.load(GOLDEN / "images.npz")
    for split in ("train", "val"):
        for index, image in enumerate(arrays[split]):
            for path in (home / "images" / split / "scene", home / "classes" / split / "abc"[index % 3]):
                path.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path / f"{index:04d}.png")
    data = f"name: imagefolder, root: {home}/images, shuffle: false, num_workers: 0"
    output = f"output: {{dir: {home}/out}}\n"
    (home / "prune.yaml").write_text(f"model: {MODEL}\ndata: {{{data}, batch_size: 32}}\n{output}")
    (home / "distill.yaml").write_text(
        f"teacher: {MODEL}\nstudent: {{pretrained: {home}/student}}\ndata: {{{data}, batch_size: 16}}\n"
        f"optim: {{base_lr: 0.02, min_lr: 1e-4, epochs: 5}}\n{output}"
    )
    for words in PRUNED:
        to_its_end(home, words)
    (home / "out" / "pruned").rename(home / "student")
    build("wds/animals", home / "sets")
    shutil.copytree(home / "sets" / "animals", home / "sets" / "again")
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (home / "clip.json").write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))


def _words(home: Path, words: Sequence[str]) -> list[str]:
    """Settings by their whole path."""
    return [str(home / word) if word.endswith(".yaml") else word for word in words]


def to_its_end(home: Path, words: Sequence[str], processes: int = 1) -> float:
    """Runs a command line; its seconds."""
    since = time.monotonic()
    done = run_processes(processes, _words(home, words))
    assert done.returncode == 0, done.stderr
    return time.monotonic() - since


def kill_one_run(home: Path, case: Case, after: float, moments: random.Random) -> bool:
    """Whether it was still running after so many seconds, and was killed."""
    with started(case.processes, _words(home, case.words)) as processes:
        connection.wait([processes[0].sentinel], after)
        alone = moments.random() < 0.5
        victims = moments.sample(processes, 1) if alone else processes
        killed = all(process.is_alive() for process in processes)
        for process in victims if killed else ():
            process.kill()
        for process in processes:
            process.join(GRACE_SECONDS if alone else None)
        for process in processes:
            # torchrun ends the others.
            process.kill()
            process.join()
    assert killed or not any(process.exitcode for process in processes), [process.exitcode for process in processes]
    return killed


def result(folder: Path) -> dict[str, Any]:
    """Every file by its name: its bytes, or its JSON without times, or the tensors of a checkpoint, which stand in no
    order. TensorBoard's files hold times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = _without_times(json.loads(path.read_text()))
        elif name.startswith("checkpoints") and path.suffix == ".safetensors":
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in load_file(path).items()}
        elif path.is_file() and not name.startswith("tensorboard"):
            found[name] = path.read_bytes()
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in TIMES}
    return value


def measure(home: Path, case: Case, kills: int, moments: random.Random) -> tuple[int, int, list[str]]:
    """The kills, the runs that were compared, and the files that differed."""
    out, first = home / "out", home / "first"
    for folder in (out, first):
        shutil.rmtree(folder, ignore_errors=True)
    for words in case.first:
        to_its_end(home, words)
    out.mkdir(exist_ok=True)
    shutil.copytree(out, first)
    seconds = to_its_end(home, case.words, case.processes)
    whole = result(out)
    made = compared = 0
    different: set[str] = set()
    while made < kills or compared == 0:
        shutil.rmtree(out)
        shutil.copytree(first, out)
        while made < kills and kill_one_run(home, case, moments.uniform(0, seconds), moments):
            made += 1
        to_its_end(home, case.words, case.processes)
        found, compared = result(out), compared + 1
        different |= {name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)}
    return made, compared, sorted(different)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", metavar="NAME", help="of cases (default: all)")
    options.add_argument("--kills", type=int, default=20, help="of each case (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    asked = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(home)
        for name, case in cases(home).items():
            if asked.names and name not in asked.names:
                continue
            moments = random.Random(f"{asked.seed} {name}")
            kills, compared, different = measure(home, case, asked.kills, moments)
            says = f"differ: {', '.join(different)}" if different else "same bytes"
            print(f"{name}: {kills} kills, {compared} runs compared, {says}", flush=True)
            failed |= bool(different)
    sys.exit(failed)


if __name__ == "__main__":
    main()
