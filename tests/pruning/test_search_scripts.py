"""main_prune.py as users run it: killed and run again, to a size, as a sweep, by racing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amp.models.folder import load_tower
from amp.pruning import report
from amp.pruning.measure.held_out import HeldOutEntropy
from amp.run.sealed import read_json
from amp.scoring.scores_file import load_scores, save_scores

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]
FEW = ("--set", "prune.search_steps=3")


@pytest.fixture
def words(prune_yaml: Path, scored: Path) -> tuple[str, str]:
    """Of a run whose neurons are scored."""
    return ("--config_file", str(prune_yaml))


def without_times(folder: Path) -> dict[str, Any]:
    record = read_json(folder / "prune.json")
    del record["cost"]["seconds"], record["reproduce"]
    return record


def stop_at(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Ctrl-C at the `last` measurement."""
    measure, made = HeldOutEntropy.measure, []

    def measure_or_stop(self: HeldOutEntropy, block: int, batches: range) -> list[float]:
        made.append(block)
        if len(made) > last:
            raise KeyboardInterrupt
        return measure(self, block, batches)

    monkeypatch.setattr(HeldOutEntropy, "measure", measure_or_stop)


def test_an_interrupted_search_goes_on_and_ends_in_the_same_bytes(
    words: tuple[str, str], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", [*words, *FEW, "--set", "prune.store=disk"]
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        assert call("main_prune.py", *whole)[0] == 130
    journal = out / "prune_journal.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 7
    assert not (out / "prune.json").exists()
    before = journal.read_bytes()
    code, console, _ = call("main_prune.py", *whole, "--set", "prune.two_sided=true")
    assert (code, journal.read_bytes()) == (0, before)
    assert f"another pruning with these scores; this one is written to {out}/increase-" in console
    assert call("main_prune.py", *whole)[0] == 0
    resumed = without_times(out), (out / "pruned" / "model.safetensors").read_bytes()
    for name in ("prune.json", "prune_journal.jsonl"):
        (out / name).unlink()
    assert call("main_prune.py", *whole)[0] == 0
    assert (without_times(out), (out / "pruned" / "model.safetensors").read_bytes()) == resumed
    assert not list(out.glob(".inputs*"))


def test_changed_scores_are_noticed(
    words: tuple[str, str], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert call("main_prune.py", *words)[0] == 130
    path = tmp_path / "out" / "scores.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    code, _, err = call("main_prune.py", *words)
    assert (code, "scores.safetensors: is damaged" in err) == (2, True)
    content[-4] ^= 1
    path.write_bytes(content)
    scores, header = load_scores(path)
    save_scores([-score_H for score_H in scores], header, path)
    code, _, err = call("main_prune.py", *words)
    assert (code, "prune_journal.jsonl was made before the scores changed" in err) == (2, True)


@pytest.mark.usefixtures("pictures")
def test_a_sweep_shows_size_against_entropy_and_its_points_are_written_without_measuring(
    words: tuple[str, str], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    code, console, _ = call("main_prune.py", *words, *FEW, "--sweep", "1e-2", "1e-3")
    assert code == 0
    record = json.loads((out / "prune_sweep.json").read_text())
    assert (out / "prune_sweep.md").read_text().strip() in console
    assert (out / "prune_sweep.png").exists()
    small, large = record["points"]
    assert (small["entropy_increase"], large["entropy_increase"]) == (1e-3, 1e-2)
    assert large["params"] < small["params"] < record["dense"]["params"]
    stop_at(monkeypatch, 0)
    assert call("main_prune.py", *words, *FEW, "--set", "prune.entropy_increase=1e-2")[0] == 0
    pruned = json.loads((out / "prune.json").read_text())
    assert pruned["widths"] == large["widths"]
    assert pruned["params"] == {"dense": record["dense"]["params"], "pruned": large["params"]}
    assert pruned["flops"]["pruned"] == large["flops"]
    assert pruned["final_entropy"] == large["final_entropy"]


def test_a_size_is_met_by_racing(prune_yaml: Path, tmp_path: Path, call: Call) -> None:
    words = ["--config_file", prune_yaml, "--set", "data.num_val_samples=32"]
    assert call("main_score.py", *words)[0] == 0
    words += ["--set", "prune.target.flops=0.7", "--set", "prune.search=racing"]
    code, console, _ = call("main_prune.py", *words)
    assert code == 0, console
    record = json.loads((tmp_path / "out" / "prune.json").read_text())
    sizes = record["flops"]
    assert sizes["pruned"] / sizes["dense"] == pytest.approx(0.7, rel=0.01)
    assert len(record["probe_batches"]) == len(record["probes"])


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_size_is_met_without_a_search(words: tuple[str, str], tmp_path: Path, call: Call, allocation: str) -> None:
    target = ["--set", "prune.target.flops=0.7", "--set", f"prune.allocation={allocation}"]
    code, console, _ = call("main_prune.py", *words, *target)
    assert code == 0, console
    record = json.loads((tmp_path / "out" / "prune.json").read_text())
    assert record["settings"]["prune"]["allocation"] == allocation
    assert record["probes"] == []
    assert record["flops"]["pruned"] / record["flops"]["dense"] == pytest.approx(0.7, rel=0.01)
    assert (len(set(record["widths"])) == 1) == (allocation == "uniform")
    loaded = load_tower(tmp_path / "out" / "pruned")
    assert loaded.widths == record["widths"]


@pytest.mark.parametrize(
    "size",
    [
        ["--sweep", "params", "0.1"],
        ["--set", "prune.target.params=0.1"],
        ["--set", "prune.target.params=0.1", "--set", "prune.allocation=uniform"],
    ],
)
def test_a_size_out_of_reach_reads_no_weights_and_leaves_nothing(
    words: tuple[str, str], scored: Path, call: Call, size: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(scored.rglob("*"))
    monkeypatch.setattr("amp.towers.check_complete", lambda *_: pytest.fail("weights are read"))
    code, _, err = call("main_prune.py", *words, *size)
    assert code == 2
    assert "prune.target.params: 0.1: out of reach; the smallest network" in err.splitlines()[-1]
    assert sorted(scored.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--set", "prune.allocation=global"],
            "prune.target: missing; prune.allocation: global needs a target size, here or in --sweep",
        ),
        (
            ["--set", "prune.allocation=uniform", "--set", "prune.target.params=0.5", "--set", "prune.two_sided=true"],
            "prune: two_sided: allocation: uniform does not search; remove this setting",
        ),
        (["--sweep", "-1"], "--sweep: -1 is not a number from 0"),
        (["--sweep", "1", "--set", "prune.target.params=0.5"], "--sweep: prune.target must be null"),
        (["--sweep", "1", "--set", "prune.widths=[1]"], "--sweep: prune.widths must be null"),
        (["--set", "prune.target={params: 0.5, flops: 0.5}"], "params and flops: give only one target"),
    ],
)
def test_mistakes_are_one_line(prune_yaml: Path, tmp_path: Path, call: Call, words: list[str], says: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, _, err = call("main_prune.py", "--config_file", prune_yaml, *words)
    assert code == 2
    assert says in err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_picture_names_the_model_and_what_was_chosen(
    words: tuple[str, str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    headings: list[str] = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: headings.append(figure.get_suptitle()))
    chosen = ("--set", "prune.widths=[32,32,32,32,32]", "--set", "prune.compensation=mean")
    code, _, err = call("main_prune.py", *words, *chosen)
    assert code == 0, err
    (heading,) = headings
    first, size = heading.splitlines()
    assert first == "tiny-clip (criterion: entropy, given widths, compensation: mean)"
    assert "parameters (" in size
