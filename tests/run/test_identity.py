"""Laws of a run's identity: what decides the result is in it, what does not is not, and artifacts hold it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from pydantic import BaseModel

import amp
from amp.run.identity import check_same, first_difference, identity, read_header
from amp.run.run import Run
from amp.run.sealed import write_tensors
from amp.settings.base import ASIDE
from amp.settings.distill import DistillConfig
from amp.settings.prune import PruneConfig
from amp.settings.reading.yaml_files import load_config


def _aside(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Key paths of the settings that are declared not to decide a result."""
    found = []
    for key, field in kind.model_fields.items():
        if field.json_schema_extra == ASIDE["json_schema_extra"]:
            found.append(prefix + key)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _aside(field.annotation, f"{prefix}{key}.")
    return found


def test_these_settings_leave_a_result_as_it_is() -> None:
    reading, output = ["data.compare_times", "data.max_broken", "data.num_workers"], ["output"]
    score = ["score.keep_moments", "score.micro_batch", "score.save_every"]
    prune = ["prune.store", "prune.store_every"]
    assert sorted(_aside(PruneConfig)) == sorted([*reading, *score, *prune, *output])
    working = ["parallel", "accumulate", "activation_checkpointing", "compile", "step_in_backward"]
    assert sorted(_aside(DistillConfig)) == sorted([*reading, *(f"optim.{key}" for key in working), "eval", *output])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.num_workers=3", None),
        ("score.micro_batch=8", None),
        ("output.dir=elsewhere", None),
        ("data.seed=1", "data.seed"),
        ("model.kwargs={img_size: 48}", "model.kwargs.img_size"),
        ("prune.target={params: 0.5}", "prune.target.params"),
    ],
)
def test_the_first_difference_is_named(prune_yaml: Path, override: str, key: str | None) -> None:
    one, other = (identity(load_config(PruneConfig, prune_yaml, words)) for words in ([], [override]))
    recorded = json.loads(json.dumps(one))
    assert first_difference(recorded, one) is None
    difference = first_difference(recorded, other)
    assert (difference and difference[0]) == key


def test_files_count_where_an_artifact_recorded_them() -> None:
    old = {"settings": {}, "pretrained_sha256": "a", "student_sha256": "b"}
    assert first_difference(old, {**old, "student_sha256": "c"}) == ("student_sha256", "b", "c")
    assert first_difference(old, {**old, "pretrained_sha256": None}) == ("pretrained_sha256", "a", None)
    assert first_difference(old, {**old, "more_sha256": "d"}) is None


def test_every_kind_of_artifact_holds_the_header(tmp_path: Path) -> None:
    run = Run(None, tmp_path, {"settings": {"a": 1}, "pretrained_sha256": None})
    assert run.header["versions"]["amp"] == amp.__version__
    written = run.write("record.json", {"found": 2}, "script.py")
    write_tensors(run.path("scores.safetensors"), {"x": torch.ones(1)}, run.header)
    run.path("folder").mkdir()
    run.path("folder/config.json").write_text(json.dumps({"provenance": run.header}))
    assert read_header(run.path("record.json")) == written
    for name in ("record.json", "scores.safetensors", "folder/config.json"):
        held: dict[str, Any] = read_header(run.path(name))
        assert {key: held[key] for key in run.header} == run.header
        other = Run(None, tmp_path, {"settings": {"a": 2}, "pretrained_sha256": None})
        assert run.done(name)
        message = refusal(lambda name=name, other=other: other.done(name))
        # Of a model folder, the folder is told, since it is what has to go.
        told = name.partition("/")[0]
        assert message.startswith(f"output.dir: {tmp_path} holds another run: {told} was made with ")
        assert message.endswith(f"or delete {tmp_path / told}")
        assert "was made with a = 1, but this run has 2" in message
    assert not run.done("record.json", "gone.json")


def test_the_option_that_chose_the_place_is_named(tmp_path: Path) -> None:
    message = refusal(lambda: check_same(tmp_path / "x.json", {"settings": {"a": 1}}, {"settings": {}}, "--output"))
    assert message.startswith("--output: ")
    assert "choose another place or delete " in message
