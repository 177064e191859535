"""The command `amp`: its commands are files, help answers at once, a misspelt word is told with the nearest."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, refusal

from amp.commands import choose
from amp.registry import COMMANDS, EVALUATIONS
from amp.run.console import called, reproduce
from amp.settings.base import Parser

SCRIPTS = {
    "score": "main_score.py",
    "prune": "main_prune.py",
    "distill": "distill.py",
    "eval zsc": "eval/eval_zsc.py",
    "eval knn": "eval/eval_knn.py",
    "eval efficiency": "eval/eval_efficiency.py",
}


def _amp(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/amp", *words])
    choose("amp", COMMANDS, "Prunes.\nMore.")


def test_help_names_every_command_and_the_first_line_of_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, registry in ((["--help"], COMMANDS), ([], COMMANDS), (["eval"], EVALUATIONS)):
        _amp(monkeypatch, *words)
        shown = capsys.readouterr().out.splitlines()
        for name in registry.names:
            assert any(line.split() == [name, *registry.meaning(name).split()] for line in shown)
            assert registry.meaning(name).endswith("."), "a sentence that ends on its line"


def test_misspelt_commands_and_options_are_told_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ", ".join(COMMANDS.names)
    wrong = refusal(lambda: _amp(monkeypatch, "scroe", "--help"))
    assert wrong == f"amp: no command 'scroe'; did you mean 'score'? (known: {known})"
    assert refusal(lambda: _amp(monkeypatch, "eval", "knm")).startswith(
        "amp eval: no command 'knm'; did you mean 'knn'?"
    )
    for words, option in (
        (["prune", "--modle", "x"], "--model"),
        (["distill", "--config_flie=x"], "--config_file"),
        (["eval", "zsc", "--datset", "x"], "--dataset"),
        (["models", "--farme", "timm"], "--frame"),
        (["convert", "--text_pretraind", "x"], "--text_pretrained"),
    ):
        message = refusal(lambda words=words: _amp(monkeypatch, *words))  # type: ignore[misc]
        assert f"no such option; did you mean '{option}'" in message


def test_a_parser_refuses_in_one_line() -> None:
    parser = Parser(prog="amp x")
    parser.add_argument("--steps", type=int, required=True)
    assert parser.parse_args(["--steps", "3"]).steps == 3
    wrong = refusal(lambda: parser.parse_args(["--step", "3"]))
    assert wrong == "--step: no such option; did you mean '--steps', '--help'? --help lists them all"
    assert refusal(lambda: parser.parse_args(["--steps", "a"])) == "--steps: invalid int value: 'a'"
    assert refusal(lambda: parser.parse_args([])).startswith("amp x: the following arguments are required: --steps")


def test_help_shows_what_is_needed_first_and_itself_last() -> None:
    parser = Parser(prog="amp x")
    parser.add_argument("--steps", help="steps")
    parser.add_argument_group("what to measure").add_argument("--model", help="name")
    usage, *rest = parser.format_help().splitlines()
    assert usage == "usage: amp x [--model MODEL] [--steps STEPS] [-h] [-v]"
    options = [line.split()[0] for line in rest if line.startswith("  -")]
    assert options == ["--model", "--steps", "-h,", "-v,"]


def test_the_command_that_was_typed_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, recorded, name in (
        ("amp prune", "amp prune --params 0.6", "amp prune"),
        ("main_prune.py", "python main_prune.py --params 0.6", "main_prune.py"),
    ):
        monkeypatch.setattr("sys.argv", [program, "--params", "0.6"])
        assert reproduce("main_prune.py") == recorded
        assert called("prune") == name


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_script_is_its_command(command: str, call: Callable[..., tuple[int, str, str]]) -> None:
    *groups, name = command.split()
    main = (EVALUATIONS if groups else COMMANDS).load(name).main
    space: dict[str, object] = {"__name__": "script"}
    exec(compile((ROOT / SCRIPTS[command]).read_text(), SCRIPTS[command], "exec"), space)
    assert space["main"] is main


def test_help_and_mistakes_answer_without_torch(at_once: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    started = time.monotonic()
    for words, code in (
        (["--help"], 0),
        (["eval", "--help"], 0),
        (["prune", "--help"], 0),
        (["eval", "zsc", "--help"], 0),
        (["--version"], 0),
        (["prune", "--model", "timm/x", "--images", "y", "--params", "60"], 2),
        (["distil"], 2),
    ):
        done = at_once("-m", "amp", *words)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == (code == 2)
    assert time.monotonic() - started < 7 * 2


@pytest.mark.slow
def test_the_wheel_holds_the_package_the_command_and_the_configs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    for name in [name for name in listed if not name.startswith(("tests/", "docs/")) and (ROOT / name).exists()]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), "."]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, cwd=source, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = {Path(name).name: archive.read(name).decode() for name in names if ".dist-info/" in name}
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"amp"}
    carried = [("amp", "*.py"), ("amp", "*.safetensors"), ("configs", "*.*")]
    for path in (path for folder, pattern in carried for path in (ROOT / folder).rglob(pattern)):
        inside = path.relative_to(ROOT)
        assert str(inside if inside.parts[0] == "amp" else "amp" / inside) in names
    assert "amp = amp.commands:main" in about["entry_points.txt"]
    for extra in ("eval", "export", "dev"):
        assert f"Provides-Extra: {extra}" in about["METADATA"]
