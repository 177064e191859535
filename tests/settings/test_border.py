"""The border: YAML is plain values, every number and name has bounds, and the line says what to write."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from conftest import refusal
from pydantic import BaseModel, ValidationError

from amp.settings.base import check_numbers
from amp.settings.prune import PruneConfig
from amp.settings.reading.command_line import parse_prune
from amp.settings.reading.sweep import Sweep, parse_sweep
from amp.settings.reading.yaml_files import CONFIGS, load_config

YAML = "model: {name: ViT-B-32}\ndata: {name: coco, root: r, batch_size: 8}\noutput: {dir: o}\n"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(YAML)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 1 not a YAML file of settings: anchors and aliases"),
        ("a: &a\n  b: *a", "line 1 not a YAML file of settings: anchors and aliases"),
        ("a: !!int foo", "tags are not allowed"),
        ("a: !!python/object/apply:os.getcwd []", "tags are not allowed"),
        ("a: !!binary QUJD", "tags are not allowed"),
        (f"a: {'9' * 5000}", "a number of 5000 digits"),
        (f"a: {'[' * 3000}", "nested more than 20 deep"),
        ("? [a]\n: b", "a key must be a word"),
        ("? {a: b}\n: b", "a key must be a word"),
        ("a: 1\n---\nb: 2", "a second document begins"),
        ("a: \x00", "special characters are not allowed"),
        ("a: " + "x" * 1_000_001, "is longer than 1000000 characters"),
    ],
)
def test_yaml_builds_plain_values_alone(yaml: Path, text: str, words: str) -> None:
    yaml.write_text(text)
    message = refusal(lambda: load_config(PruneConfig, yaml))
    assert str(yaml) in message
    assert words in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-13-45", "2024-13-45"),
        ("2024-01-02", "2024-01-02"),
        ("1:30", "1:30"),
        ("0x_", "0x_"),
        ("'1'", "1"),
        ("=", "="),
        ("<<", "<<"),
        ("0x1f", 31),
        ("017", 15),
        ("-1_000", -1000),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("yes", True),
        ("~", None),
        ("[1, {b: off}]", [1, {"b": False}]),
    ],
)
def test_scalars_read_as_they_look(yaml: Path, text: str, value: object) -> None:
    assert load_config(PruneConfig, yaml, [f"model.kwargs.x={text}"]).model.kwargs == {"x": value}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.seed=9223372036854775807", "less than or equal to 4294967295"),
        ("score.seed=-1", "greater than or equal to 0"),
        ("model.transform.input_size=1000000", "less than or equal to 8192"),
        ("model.transform.std=[1e-320, 1, 1]", "greater than or equal to 0.001"),
        ("model.transform.crop_pct=1e-9", "greater than or equal to 0.1"),
        ("model.transform.mean=[.inf, 0, 0]", "finite"),
        ("model.kwargs.img_size=100000", "img_size: 100000 is not allowed: from 1 to 8192"),
        ("model.kwargs.img_size=-3", "img_size: -3 is not allowed"),
        ("model.kwargs.img_size=0", "img_size: 0 is not allowed"),
        ("model.kwargs.img_size=[224, 0]", "img_size: 0 is not allowed"),
        ("model.kwargs.img_size=foo", "img_size: 'foo' is not allowed: pixels, from 1 to 8192"),
        (
            "model.kwargs.vision_cfg.layers=1000000000000",
            "vision_cfg.layers: 1000000000000 is not allowed: from 0 to 512",
        ),
        ("model.kwargs.tokenizer=hf-hub:a/b", "tokenizer: 'hf-hub:a/b' would be fetched from elsewhere; not allowed"),
        ("model.kwargs.x=.nan", "x: nan is not allowed"),
        ("data.batch_size=10000000", "less than or equal to 1000000"),
        ("data.num_workers=10000", "less than or equal to 1024"),
        ("prune.store_every=10000000000", "less than or equal to 1000000000"),
        ("prune.entropy_increase=1e300", "less than or equal to"),
        ("score.inverse_temperature=1e-320", "greater than 0"),
        (f"data.root={'a' * 300}", "300 characters; a name may have 255"),
        (f"output.dir=x/{'a' * 300}/y", "a name may have 255, a path 4000"),
        ('output.dir="a\\0b"', "control characters"),
        ('model.name="a\\nb"', "control characters"),
        ("output.dir=''", "is empty"),
        ("score.template='{c} {x}'", "must not contain braces other than {c}"),
        ("score.template='{c} {0}'", "must not contain braces other than {c}"),
        ("score.template='{c.__class__}'", "must contain {c}"),
        ("score.template='{c} {c.__class__}'", "must not contain braces other than {c}"),
        (
            "prune.target=0.6",
            "is a group of settings (params, flops, throughput, latency); write for example --set prune.target.",
        ),
        ("prune.target.params=60", "60 is not a share: it must be greater than 0 and less than 1; for 60 % write 0.6"),
        ("prune.target.flops=0", "0 is not a share"),
        ("model=ViT-B-32", "write for example --set model.name=ViT-B-32"),
        ("prune.min_width=10000000", "less than or equal to"),
        (".".join("a" * 3000) + "=1", "is not the key of a setting"),
        ("data.\x00=1", "is not the key of a setting"),
    ],
)
def test_every_value_has_bounds(yaml: Path, override: str, words: str) -> None:
    message = refusal(lambda: load_config(PruneConfig, yaml, [override]))
    assert "--set" in message
    assert words in message


def _lists(group: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    for name, field in group.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        if any(get_origin(kind) is tuple and Ellipsis in get_args(kind) for kind in (*kinds, *map(_bare, kinds))):
            yield group, name
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _lists(kind)


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


@pytest.mark.parametrize(("group", "name"), dict.fromkeys(pair for kind in CONFIGS.values() for pair in _lists(kind)))
def test_no_list_may_be_empty(group: type[BaseModel], name: str) -> None:
    with pytest.raises(ValidationError) as refused:
        group.model_validate_json(json.dumps({name: []}))
    assert (name,) in [problem["loc"][:1] for problem in refused.value.errors() if problem["type"] == "too_short"]


def test_a_group_in_the_file_is_told_as_it_is_written_there(yaml: Path) -> None:
    yaml.write_text(YAML + "prune: {target: 0.6}")
    assert "write for example prune.target: {params: 0.6}" in refusal(lambda: load_config(PruneConfig, yaml))


def test_too_few_images_to_calibrate_on_are_told_before_the_work(yaml: Path) -> None:
    few = "prune.num_calibration_samples=16"
    assert load_config(PruneConfig, yaml, [few, "prune.compensation=ridge"]).prune.num_calibration_samples == 16
    message = refusal(lambda: load_config(PruneConfig, yaml, ["prune.num_calibration_samples=1"]))
    assert "prune.num_calibration_samples 1 is less than one batch of 8 images" in message
    large = ["data.batch_size=4096"]
    assert load_config(PruneConfig, yaml, large).prune.compensation == "none"
    message = refusal(lambda: load_config(PruneConfig, yaml, [*large, "prune.compensation=ridge"]))
    assert "num_calibration_samples 2048 is less than one batch of 4096 images" in message
    message = refusal(lambda: load_config(PruneConfig, yaml, ["prune.recover_images=1"]))
    assert "prune.recover_images 1 is less than one batch of 8 images" in message


def test_a_refit_of_a_folder_makes_no_recovery(yaml: Path) -> None:
    words = ["--config_file", str(yaml), "--compensate_only", "--set", "prune.compensation=ridge"]
    message = refusal(lambda: parse_prune("", [*words, "--set", "prune.recover_steps=5"]))
    assert message.startswith("--compensate_only: does not work with prune.recover_steps 5; add --set")
    assert parse_prune("", words)[1].compensate_only


@pytest.mark.parametrize("words", [["nan"], ["inf"], ["-1"], ["1e-3", "inf"]])
def test_thresholds_are_numbers_that_can_be_met(yaml: Path, words: list[str]) -> None:
    message = refusal(lambda: parse_prune("", ["--config_file", str(yaml), "--sweep", *words]))
    assert message.startswith("--sweep: ")
    assert "is not a number from 0 to 1e+09" in message


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("params 0.4 0.8 0.6", Sweep(targets=(("params", 0.8), ("params", 0.6), ("params", 0.4)))),
        ("throughput 3 2", Sweep(targets=(("throughput", 2.0), ("throughput", 3.0)))),
        ("entropy_increase 1e-2 1e-3", Sweep(thresholds=(1e-3, 1e-2))),
        ("1e-2", Sweep(thresholds=(1e-2,))),
        ("", Sweep()),
    ],
)
def test_a_sweep_says_of_what_and_which(words: str, asked: Sweep) -> None:
    assert parse_sweep(words.split()) == asked


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("params", "params: give values, for example 0.8 0.6 0.4"),
        ("params 0.7 60", "params 60: must be a share between 0 and 1"),
        ("throughput 1", "throughput 1: must be above 1"),
        ("size 0.5", "'size' is neither a number nor one of params, flops, latency, throughput, entropy_increase"),
    ],
)
def test_a_sweep_of_nothing_that_can_be_is_refused(words: str, says: str) -> None:
    assert refusal(lambda: parse_sweep(words.split())).startswith(f"--sweep: {says}")


def test_an_unreadable_file_is_told(yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*inputs: Any, **named: Any) -> str:
        raise PermissionError(13, "Permission denied", str(yaml))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert refusal(lambda: load_config(PruneConfig, yaml)) == f"{yaml}: cannot be read (Permission denied)"


def test_a_name_that_no_file_can_have_is_told() -> None:
    message = refusal(lambda: load_config(PruneConfig, "a" * 300 + ".yaml"))
    assert "cannot be read (File name too long)" in message


def test_descriptions_of_models_keep_what_they_are() -> None:
    described = {
        "vision_cfg": {"layers": 12, "patch_size": 14, "image_size": [224, 224]},
        "text_cfg": {"vocab_size": 49408},
    }
    assert check_numbers(described) is described
