"""Law of a stop: SIGTERM and Ctrl-C end every script with one line; the same command then ends in the same bytes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.fake_benchmarks import build
from processes.kill_often import result
from processes.small_run import DISTIL, PRUNE, SCORE, run_in, write_inputs
from processes.start import run_processes

pytestmark = pytest.mark.slow

RIDGE = ("--set", "prune.compensation=ridge", "--set", "prune.num_calibration_samples=16", "--compensate_only")
MODEL = ("--model", "clip.json", "--batch_size", "4")
KNN = ("eval/eval_knn.py", *MODEL, "--dataset_root", "images", "--output", "out/knn.json")
SETS = ("--dataset", "wds/animals", "--dataset_root", "sets/{dataset}", "--output", "out/zsc.json")
ZERO_SHOT = ("eval/eval_zsc.py", *MODEL, *SETS, "--save_clf", "out/clf")
END = re.compile("(stopped|error|interrupted|Traceback|Exception).*")


class Case(NamedTuple):
    """A script, how many of the steps are done before it, and at which call of what the signal comes."""

    words: tuple[str, ...]
    before: int
    place: str
    call: int


CASES = {
    "score": Case(SCORE, 0, "amp.statistics.saved_sums:SavedSums.step", 2),
    "search": Case(PRUNE, 1, "amp.pruning.measure.journal:Journal.add", 3),
    "search, writing": Case(PRUNE, 1, "amp.models.folder:write_json", 1),
    "refit": Case((*PRUNE, *RIDGE), 2, "amp.pruning.refit._compensator:Compensator.apply", 2),
    "distil": Case(DISTIL, 2, "amp.distillation.trainer:Trainer.train_step", 2),
    "distil, writing": Case(DISTIL, 2, "amp.models.folder:write_json", 1),
    "zero-shot": Case(ZERO_SHOT, 0, "amp.evaluation.zeroshot:Evaluator._embed_images", 2),
    "k-NN": Case(KNN, 0, "amp.evaluation.knn:Featurizer._feature", 2),
}


def _workers(words: tuple[str, ...], number: int) -> tuple[str, ...]:
    own = ("--num_workers", f"{number}") if words[0].startswith("eval") else ("--set", f"data.num_workers={number}")
    return (*words, *own)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folder of a run with its inputs alone, scored, and pruned."""
    homes = [tmp_path_factory.mktemp("stages") / str(number) for number in range(3)]
    homes[0].mkdir()
    write_inputs(homes[0])
    build("wds/animals", homes[0] / "sets")
    config = json.loads((homes[0] / "tiny.json").read_text())
    config["text_cfg"] |= {"context_length": 12, "vocab_size": 49408}
    (homes[0] / "clip.json").write_text(json.dumps(config))
    for before, after, words in zip(homes, homes[1:], (SCORE, PRUNE), strict=False):
        shutil.copytree(before, after)
        assert run_in(after, *words).code == 0
    return homes


def _bytes(home: Path) -> dict[str, Any]:
    """Without checkpoints, of which a stop makes one more."""
    return {name: own for name, own in result(home / "out").items() if not name.startswith("checkpoints")}


@pytest.mark.parametrize("name", CASES)
def test_every_script_stops_with_one_line_and_goes_on(name: str, stages: list[Path], tmp_path: Path) -> None:
    words, before, place, call = CASES[name]
    whole = tmp_path / "whole"
    shutil.copytree(stages[before], whole)
    assert run_in(whole, *_workers(words, 0)).code == 0
    for how, code in (("terminate", 143), ("interrupt", 130)):
        home = tmp_path / how
        shutil.copytree(stages[before], home)
        script = ["tests/processes/ended_at.py", place, str(call), "0", how, *_workers(words, 1)]
        ended = run_processes(1, script, timeout=60, folder=home)
        lines = [line for line in ended.stderr.splitlines() if END.match(line)]
        assert (ended.returncode, len(lines)) == (code, 1), ended.stderr
        assert lines == ended.stderr.splitlines()[-1:]
        assert not [path for path in (home / "out").rglob(".*") if path.is_file()]
        again = run_in(home, *_workers(words, 0))
        assert again.code == 0, again.err
        assert _bytes(home) == _bytes(whole)
