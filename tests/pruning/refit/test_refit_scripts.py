"""Compensation through main_prune.py: what is written is what was judged, on any number of processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from amp.models.folder import load_tower
from amp.pruning.measure.held_out import HeldOutEntropy

pytestmark = pytest.mark.slow

RIDGE = ("prune.compensation=ridge", "prune.num_calibration_samples=64", "prune.entropy_increase=0.05")
WIDTHS = "prune.widths=[100, 7, 256, 31, 64]"


def _words(yaml: Path, *settings: str) -> list[object]:
    return ["--config_file", yaml, *(word for setting in settings for word in ("--set", setting))]


@pytest.mark.parametrize(("method", "in_search"), [("ridge", "true"), ("ridge", "false"), ("sequential", "true")])
def test_the_saved_network_is_the_one_that_was_judged(
    scored: Path,
    prune_yaml: Path,
    call: Callable[..., Any],
    batches: Callable[[str], list[Tensor]],
    method: str,
    in_search: str,
) -> None:
    own = (*RIDGE, f"prune.compensation={method}", f"prune.compensate_in_search={in_search}")
    code, out, err = call("main_prune.py", *_words(prune_yaml, *own))
    assert code == 0, err
    assert "refit: mean error of the MLP outputs" in out
    record = json.loads((scored / "prune.json").read_text())
    assert min(record["widths"]) < 256
    for error, width in zip(record["compensation"], record["widths"], strict=True):
        assert error["with"] <= error["without"] + 1e-9
        assert method == "sequential" or (error["without"] > 0) == (width < 256)
    entropy = HeldOutEntropy(load_tower(scored / "pruned"), batches("val"), 15.0)()
    assert record["final_entropy"] == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize(("method", "steps"), [("ridge", 0), ("sequential", 0), ("none", 4)])
def test_two_processes_write_the_same_weights(
    scored: Path, prune_yaml: Path, call: Callable[..., Any], launch: Callable[..., Any], method: str, steps: int
) -> None:
    own = _words(prune_yaml, *RIDGE, f"prune.compensation={method}", f"prune.recover_steps={steps}", WIDTHS)
    code, _, err = call("main_prune.py", *own)
    assert code == 0, err
    weights = [load_file(scored / "pruned" / "model.safetensors")]
    _set_aside(scored, "one")
    done = launch(2, "main_prune.py", *own)
    assert done.returncode == 0, done.stderr
    weights.append(load_file(scored / "pruned" / "model.safetensors"))
    # Sums of a batch are of fp32; a sequential refit fits each block to what the ones before it have made of that.
    # Adam makes whole steps of gradients that are nothing but rounding, as those of a key's bias.
    bound = {"rtol": 1e-5, "atol": {"ridge": 1e-5, "sequential": 2e-4, "none": 5e-3}[method]}
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, **bound)
    cosines = [json.loads((scored / name).read_text())["feature_cosine"] for name in ("prune.json.one", "prune.json")]
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-3)


def _set_aside(folder: Path, name: str) -> None:
    for own in ("pruned", "prune.json"):
        (folder / own).rename(folder / f"{own}.{name}")
    (folder / "prune_journal.jsonl").unlink(missing_ok=True)


def test_a_pruned_model_is_compensated_on_its_own(scored: Path, prune_yaml: Path, call: Callable[..., Any]) -> None:
    code, _, err = call("main_prune.py", *_words(prune_yaml, WIDTHS))
    assert code == 0, err
    code, _, err = call("main_prune.py", "--compensate_only", *_words(prune_yaml))
    assert (code, "prune.compensation is none" in err) == (2, True)
    code, out, err = call("main_prune.py", "--compensate_only", *_words(prune_yaml, *RIDGE))
    assert (code, f"wrote {scored}/compensated" in out) == (0, True), err
    _set_aside(scored, "plain")
    code, _, err = call("main_prune.py", *_words(prune_yaml, WIDTHS, *RIDGE))
    assert code == 0, err
    at_once, later = (load_file(scored / name / "model.safetensors") for name in ("pruned", "compensated"))
    for name, tensor in at_once.items():
        torch.testing.assert_close(later[name], tensor, rtol=1e-5, atol=1e-6)


def test_too_few_tokens_are_refused(scored: Path, prune_yaml: Path, call: Callable[..., Any]) -> None:
    yaml = prune_yaml.with_name("few.yaml")
    yaml.write_text(prune_yaml.read_text().replace("batch_size: 32", "batch_size: 8"))
    few = ("prune.compensation=ridge", "prune.num_calibration_samples=8", f"output.dir={scored}_few")
    code, _, err = call("main_score.py", *_words(yaml, few[-1]))
    assert code == 0, err
    code, _, err = call("main_prune.py", *_words(yaml, *few))
    assert (code, "tokens for the 256 neurons of block" in err) == (2, True), err
    assert "prune.num_calibration_samples" in err
