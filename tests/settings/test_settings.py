"""Settings: every config loads and builds its tower; every mistake names file, key, value and what is allowed."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers.model_folders import meta_tower

from amp.errors import UserError
from amp.registry import FRAMES
from amp.settings.compare import CompareConfig
from amp.settings.distill import DistillConfig
from amp.settings.prune import RECOMMENDED, PruneConfig
from amp.settings.reading.command_line import parse_args
from amp.settings.reading.meanings import settings_help, settings_page
from amp.settings.reading.yaml_files import load_config
from amp.towers.library import library

STARTERS = sorted((ROOT / "configs" / "starters").glob("*.yaml"))
DEMO = ROOT / "configs" / "demo"
PRUNE_CONFIGS = [
    *sorted((ROOT / "configs" / "prune_entropy").glob("*.yaml")),
    DEMO / "prune.yaml",
    DEMO / "search_cost.yaml",
]
DISTILL_CONFIGS = [*sorted((ROOT / "configs" / "distill").glob("*.yaml")), DEMO / "distill.yaml"]
COMPARE_CONFIGS = sorted((ROOT / "configs" / "compare").glob("*.yaml"))
EVERY = [*PRUNE_CONFIGS, *DISTILL_CONFIGS, *STARTERS, *COMPARE_CONFIGS]
CONFIG = "configs/prune_entropy/open_clip_g_coco_entropy.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("path", [*PRUNE_CONFIGS, *STARTERS], ids=lambda p: p.stem)
def test_prune_config_builds_its_tower(path: Path) -> None:
    config = load_config(PruneConfig, path)
    assert config.model.frame
    if library(config.model.frame).folders:
        return  # It names a folder that is the reader's.
    tower = meta_tower(config.model)
    assert len(tower.slots) == len(tower.blocks) > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", DISTILL_CONFIGS, ids=lambda p: p.stem)
def test_distill_config_builds_its_teacher(path: Path) -> None:
    config = load_config(DistillConfig, path)
    assert meta_tower(config.teacher.as_model("fp32")).widths


@pytest.mark.parametrize("path", STARTERS, ids=lambda p: p.stem)
def test_starters_are_the_settings_that_keep_most(path: Path) -> None:
    config = load_config(PruneConfig, path).model_dump()
    for group, settings in RECOMMENDED.items():
        assert {key: config[group][key] for key in settings} == settings
    assert path.stem == config["model"]["frame"]


def test_every_config_is_of_a_kind_that_is_tested() -> None:
    assert set((ROOT / "configs").rglob("*.yaml")) == {*EVERY}


@pytest.mark.parametrize("path", EVERY, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_config_opens_with_its_command_cost_and_result(path: Path) -> None:
    lines = path.read_text().splitlines()
    opening = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    command, cost, result = (
        opening.find(words) for words in (f" --config_file {path.relative_to(ROOT)}", "Cost: ", "Result")
    )
    assert 0 < command < cost < result


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("open_clip_g", ("ViT-g-14", "laion2b_s34b_b88k", 1.0e-2, 15.0, 128)),
        ("open_clip_bigG", ("ViT-bigG-14", "laion2b_s39b_b160k", 2.0e-4, 15.0, 128)),
    ],
)
def test_published_pruning_settings(file: str, expected: tuple[object, ...]) -> None:
    config = load_config(PruneConfig, f"configs/prune_entropy/{file}_coco_entropy.yaml")
    settings = (config.model.name, config.model.pretrained, config.prune.entropy_increase)
    assert (*settings, config.score.inverse_temperature, config.data.batch_size) == expected
    assert (config.prune.search_steps, config.score.absolute, config.score.criterion) == (6, True, "entropy")


@pytest.mark.parametrize(("file", "expected"), [("g", (5, 2e-5, 1e-7)), ("bigG", (20, 2e-5, 1e-6))])
def test_published_distillation_settings(file: str, expected: tuple[object, ...]) -> None:
    config = load_config(DistillConfig, f"configs/distill/distill_open_clip_{file}.yaml")
    optim = config.optim
    assert (optim.epochs, optim.base_lr, optim.min_lr) == expected
    assert (optim.warmup_epochs, optim.weight_decay, optim.weight_decay_end, optim.betas) == (1, 0.04, 0.2, (0.9, 0.95))


def test_settings_are_frozen() -> None:
    config = load_config(PruneConfig, CONFIG)
    with pytest.raises(ValueError, match="frozen"):
        config.data.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batch_sise=8", ["data.batch_sise", "unknown key", "did you mean 'batch_size'"]),
        ("modle.name=x", ["modle", "unknown key", "did you mean 'model'"]),
        ("data.batch_size=many", ["data.batch_size", '"many"', "integer"]),
        ("data.batch_size=1", ["data.batch_size", "1", "greater than or equal to 2"]),
        ("data.shuffle=1", ["data.shuffle", "boolean"]),
        ("score.criterion=reconstrution", ["score.criterion", "did you mean 'reconstruction'?"]),
        ("model.precision=bf17", ["model.precision", '"bf17"', "'fp32' or 'bf16'"]),
        (
            "model.frame=tim",
            ["model.frame", '"tim"', *map(repr, FRAMES.names), f" or {FRAMES.names[-1]!r}"],
        ),
        ("score.criterion=entropi", ["score.criterion", '"entropi"', "'entropy'"]),
        ("score.inverse_temperature=0", ["score.inverse_temperature", "greater than 0"]),
        ("prune.entropy_increase=-1", ["prune.entropy_increase", "-1", "greater than or equal to 0"]),
        ("prune.entropy_increase=.nan", ["prune.entropy_increase", "finite"]),
        ("prune.widths=[0,3]", ["prune.widths.0", "greater than or equal to 1"]),
        ("data.num_samples=100", ["data", "num_samples 100", "batch of 128 images"]),
        ("data.root=", ["data.root", "null", "string"]),
        ("data.root.deeper=1", ["data.root", "value, not a group"]),
        ("data", ["--set data", "key.path=value"]),
        ("data.seed={", ["--set data.seed={", "not YAML"]),
        ("model.kwargs={depth:3}", ["--set model.kwargs={depth:3}", "a space is missing after the colon of 'depth:3'"]),
    ],
)
def test_mistake_is_one_line_that_says_what_and_where(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(PruneConfig, CONFIG, [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in [*words, "--set"]:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", ["line 1", "not a YAML file"]),
        ("a: 1\n\tb: 2", ["line 2", "not a YAML file"]),
        ("just words", ["key: value"]),
        ("- model", ["key: value"]),
        ("", ["is empty"]),
        (
            "model: {name: a}\ndata: {name: coco, root: r, batch_siz: 8}\noutput: {dir: b}",
            ["data.batch_siz: unknown key; did you mean 'batch_size'", "data.batch_size: missing"],
        ),
        ("teacher: {name: a}", ["a config of distill.py?"]),
        ("model: {name: a}\ndata: {}\noutput: {dir: b}", ["data.name", "missing"]),
        ("model: {name: a, name: b}", ["'name' appears twice", "line 1"]),
        ("model: null", ["model"]),
    ],
)
def test_file_mistakes(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(PruneConfig, path)
    assert "\n" not in str(caught.value)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_binary_file_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "image.yaml"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="not a YAML file"):
        load_config(PruneConfig, path)


def test_missing_config_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no such file; did you mean 'configs/prune_entropy/open_clip_g_"):
        load_config(PruneConfig, "configs/prune_entropy/open_clip_g_cocoo_entropy.yaml")


def test_yaml_and_overrides_read_what_users_mean() -> None:
    overrides = ["prune.entropy_increase=1e-3", "data.num_samples=256", "model.kwargs.img_size=336"]
    config = load_config(PruneConfig, CONFIG, [*overrides, "prune.widths=[3, 4]"])
    assert config.prune.entropy_increase == 1e-3
    assert config.prune.widths == (3, 4)
    assert (config.data.num_samples, config.model.kwargs) == (256, {"img_size": 336})


def test_frame_of_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "no_frame.yaml"
    path.write_text("model: {name: ViT-B-32}\ndata: {name: coco, root: r, batch_size: 8}\noutput: {dir: o}")
    assert parse_args(PruneConfig, "", ["--config_file", str(path)]).model.frame is None
    assert parse_args(PruneConfig, "", ["--config_file", str(path), "--frame", "open_clip"]).model.frame == "open_clip"


@pytest.mark.parametrize(
    ("script", "config_class"),
    [
        ("main_score.py", PruneConfig),
        ("main_prune.py", PruneConfig),
        ("distill.py", DistillConfig),
        ("eval/eval_compare.py", CompareConfig),
    ],
)
def test_help_answers_at_once_and_names_every_setting(script: str, config_class: type, at_once: Any) -> None:
    done = at_once(script, "--help")
    assert done.returncode == 0, done.stderr
    for option in ("--config_file", "--frame", "--set"):
        assert option in done.stdout
    for line in settings_help(config_class).splitlines():
        assert line in done.stdout


@pytest.mark.parametrize("script", ["main_score.py", "main_prune.py", "distill.py"])
def test_mistakes_in_the_settings_answer_at_once(script: str, at_once: Any) -> None:
    done = at_once(script, "--config_file", CONFIG, "--set", "data.batch_sise=8")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'batch_size'" in done.stderr


def test_the_page_of_the_settings_is_the_one_that_is_written() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == settings_page(), "write it anew: python -m amp.settings > docs/settings.md"
    for config_class in (PruneConfig, DistillConfig, CompareConfig):
        for line in settings_help(config_class).splitlines():
            assert f"`{line.split()[0]}`" in page
