"""The comparison: sizes are met, rows are cached, the same choice gives the same numbers, mistakes are one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from PIL import Image
from studies.compare import Trial
from studies.compare_table import steps_to, tabulate
from studies.quality import InMemoryQuality, by_texts

from amp.data.scenes import build_scenes
from amp.evaluation.benchmarks import Benchmark
from amp.evaluation.zeroshot import Evaluator
from amp.pruning.size import counted_size
from amp.pruning.widths import prune
from amp.settings.compare import CompareConfig, CompareRowSettings
from amp.settings.prune import TargetSettings
from amp.settings.reading.yaml_files import load_config
from amp.towers import build_tower

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]
CONFIG = "configs/compare/digit_scenes.yaml"
ROWS = {"random": {"criterion": "random", "allocation": "uniform"}, "AMP": {"search_steps": 2}}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "scenes"
    build_scenes(folder, num_train=64, num_val=32, num_test=60, num_pairs=12)
    return folder


@pytest.fixture
def words(scenes: Path, tmp_path: Path) -> list[str]:
    """Overrides that make of the config a comparison of a second; the dense model has random weights."""
    return [
        "model.pretrained=",
        f"data.root={scenes}",
        *("data.batch_size=32", "data.num_samples=32", "data.num_val_samples=32"),
        *("compare.sizes=[0.6]", "compare.seeds=[1]"),
        *("distil.num_samples=64", "distil.batch_size=32", "distil.measure_every=3"),
        f"output.dir={tmp_path}/out",
    ]


def run(call: Call, words: list[str], rows: dict[str, Any]) -> tuple[int, str, str]:
    overrides = ["peers={}", *words, f"rows={json.dumps(rows)}"]
    settings = [word for override in overrides for word in ("--set", override)]
    return call("eval/eval_compare.py", "--config_file", CONFIG, *settings)


@pytest.mark.usefixtures("pictures")
def test_a_comparison_its_table_and_a_row_added_to_it(words: list[str], tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    code, console, err = run(call, words, ROWS)
    assert code == 0, err
    table = (out / "compare.md").read_text()
    assert table.strip() in console
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["dense", *ROWS]
    with Image.open(out / "compare.png") as picture:
        assert picture.size[0] > 600
    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    assert {str(path.relative_to(out / "cells")) for path in cells} == {f"{row}/0.6_1.json" for row in ROWS}
    record = json.loads((out / "cells/random/0.6_1.json").read_text())
    assert record["params"] == pytest.approx(0.6, abs=0.006)
    assert [step for step, _ in record["curve"]] == [3, 4]
    assert record["curve"][-1][1] == record["distilled"]["top1"]
    assert record["distilled"]["cosine"] > record["pruned"]["cosine"], "it learns"

    more = {**ROWS, "ridge": {"criterion": "magnitude", "allocation": "global", "compensation": "ridge"}}
    code, _, err = run(call, words, more)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    assert len(list((out / "cells").rglob("*.json"))) == 3
    # What is pruned and not yet distilled goes on from there.
    del record["curve"], record["checksum"]
    (out / "cells/random/0.6_1.json").write_text(json.dumps(record))
    assert run(call, words, ROWS)[0] == 0
    assert (out / "compare.md").read_text() == table

    code, _, err = run(call, [*words, "score.inverse_temperature=20.0"], ROWS)
    assert code == 2
    assert "score.inverse_temperature = 15.0, but this run has 20.0" in err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rows={}", "rows"),
        ("rows={a: {criterion: entropi}}", "rows.a.criterion"),
        ("rows={a: {widths: [1]}}", "rows.a: widths and target: not allowed here, compare.sizes sets"),
        ("rows={a: {allocation: global, two_sided: true}}", "rows.a: two_sided: allocation: global does not search"),
        ("compare.sizes=[0.1]", "prune.target.params: 0.1: out of reach"),
        ("data.name=imagenet1k", "test: missing; with data.name: imagenet1k"),
        ("peers={a: {method: osscarr}}", "peers.a.method: no 'osscarr'; did you mean 'osscar'"),
        ("peers={a: {methods: osscar}}", "peers.a.methods: unknown key; did you mean 'method'"),
        ("model={frame: timm, name: vit_tiny_patch16_224, kwargs: {img_size: 32}}", "has no text encoder"),
    ],
)
def test_mistakes_are_one_line(words: list[str], override: str, says: str, call: Call) -> None:
    settings = [w for o in ["peers={}", *words, f"rows={json.dumps(ROWS)}", override] for w in ("--set", o)]
    code, _, err = call("eval/eval_compare.py", "--config_file", CONFIG, *settings)
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line


@pytest.fixture
def trial(words: list[str]) -> Trial:
    return Trial(load_config(CompareConfig, ROOT / CONFIG, words), 0)


def test_what_is_measured_equals_the_zero_shot_evaluation(trial: Trial, scenes: Path) -> None:
    dense = trial.dense
    labelled, captioned = (
        Benchmark(task, "digit_scenes", str(scenes)).build(dense.transform)
        for task in ("zeroshot_classification", "zeroshot_retrieval")
    )
    evaluator = Evaluator(dense, num_workers=0)
    classifier = evaluator.text_classifier(labelled.classes, labelled.templates)
    found = InMemoryQuality(dense, by_texts(classifier), list(labelled), list(captioned)).measure(dense)
    assert found["top1"] == pytest.approx(evaluator.classify(labelled, classifier)[0]["acc1"])
    assert found["recall1"] == pytest.approx(evaluator.retrieve(captioned)[0]["image_retrieval_recall@1"])
    assert found["cosine"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("allocation", ["search", "uniform", "global"])
def test_a_row_is_what_the_pruning_of_a_user_writes(trial: Trial, allocation: str) -> None:
    """The same settings, through the verb itself."""
    row = CompareRowSettings.model_validate(
        {"criterion": "magnitude", "compensation": "ridge", "num_calibration_samples": 64, "allocation": allocation}
    )
    share = counted_size("params", trial.dense)
    widths = trial.widths(row, 0.6)
    assert share(widths) == pytest.approx(0.6, rel=0.01)
    again = trial.widths(row, 0.7)
    assert share(again) == pytest.approx(0.7, rel=0.01)
    measured = trial.prune(row, widths)
    user = trial._dense_candidates(row)
    prune(user, row.model_copy(update={"target": TargetSettings(params=0.6)}), share)
    assert measured.widths == user.tower.widths == widths
    for name, tensor in user.tower.visual.state_dict().items():
        assert torch.equal(tensor, measured.visual.state_dict()[name])


def test_seeds_choose_other_images_and_other_random_neurons(trial: Trial) -> None:
    other, again = Trial(trial.config, 1), Trial(trial.config, 0)
    assert not torch.equal(trial.scoring_images[0], other.scoring_images[0])
    assert torch.equal(trial.scoring_images[0], again.scoring_images[0])
    assert not torch.equal(trial.scores("random")[0], other.scores("random")[0])
    assert torch.equal(trial.scores("entropy")[0], again.scores("entropy")[0])


def test_steps_count_from_where_top1_stays() -> None:
    curve = [(10 * i, top1) for i, top1 in enumerate([0.5, 0.9, 0.8, 0.9, 0.95], 1)]
    assert [steps_to(curve, top1) for top1 in (0.1, 0.9, 0.96)] == [10, 40, None]


def test_the_table_gives_mean_and_deviation() -> None:
    dense = {"top1": 0.9, "recall1": 0.8, "cosine": 1.0}
    found = {
        (seed, "a", 0.5): {**dict.fromkeys(("pruned", "distilled"), dict.fromkeys(dense, value)), "curve": [(4, value)]}
        | {"params": 0.51}
        for seed, value in enumerate((0.4, 0.6, 0.95))
    }
    line = tabulate(found, dense).splitlines()[-1]
    assert line.count("0.650 ± 0.278") == 6
    assert line.split("|")[2].strip() == "0.5 (0.51)"
    assert line.split("|")[-2].strip() == "-", "two of three never get there"


def test_the_config_builds_its_tower_and_names_its_command() -> None:
    config = load_config(CompareConfig, ROOT / CONFIG)
    assert build_tower(config.model.model_copy(update={"pretrained": None}), "meta").widths == [256] * 6
    assert len(config.score.classes or ()) == 60
    assert f"eval/eval_compare.py --config_file {CONFIG}" in (ROOT / CONFIG).read_text()
