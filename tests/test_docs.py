"""What the pages say is true of the code: options, settings, names, files, messages; nothing is run but parsers.

`test_docs_run.py` runs what can be run.
"""

import argparse
import ast
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from pages import PAGES, blocks, code_words, commands, prose, read

import amp
from amp.api import PrunedModel
from amp.commands._without_file import find_weights
from amp.errors import UserError
from amp.registry import COMMANDS, EVALUATIONS
from amp.settings.base import Parser
from amp.settings.distill import DistillConfig
from amp.settings.prune import PruneConfig
from amp.settings.reading import yaml_files
from amp.settings.reading.command_line import parse_prune, parse_score
from amp.settings.reading.keywords import from_keywords
from amp.settings.reading.meanings import settings_of
from amp.settings.reading.yaml_files import CONFIGS
from amp.towers import find_frame

SCRIPTS = {
    "main_score.py": "score",
    "main_prune.py": "prune",
    "distill.py": "distill",
    "eval/eval_models.py": "compare",
}
# A reader's own file of settings, as the pages call it, and what stands for it here.
OWN = {
    "my.yaml": "configs/prune_entropy/open_clip_g_coco_entropy.yaml",
    "my_distillation.yaml": "configs/distill/distill_open_clip_g.yaml",
}
OWN_MODEL = ("path/to/", "my_")
MODULES = re.compile(r"python -m (pytest|amp\.)")
INSTALL = (".ci/run", "pip", ".venv/bin/pip", "python3.11", ".", "mkdocs", "pre-commit")
# Groups of settings, of which words such as `prune.target.params` in a text are.
SETTINGS = {key for kind in CONFIGS.values() for key, _, _ in settings_of(kind)}
GROUPS = {key.partition(".")[0] for key in SETTINGS}
FILES = re.compile(r"\.(json|png|yaml|safetensors|onnx|pt2|data)$")


GROUPED: dict[str, Any] = {
    "amp.prune": (PruneConfig, "model", "data", "score", "prune"),
    "amp.distill": (DistillConfig, "data", "optim"),
}


class Parsed(Exception):  # noqa: N818
    """A command line was read to its end."""


def _after(call: Callable[..., Any]) -> Callable[..., Any]:
    def stop(*args: Any, **options: Any) -> Any:
        raise Parsed(call(*args, **options))

    return stop


def _main(words: list[str]) -> tuple[str, list[str], Callable[[], None] | None]:
    """Which command a line calls, its own words, and what runs it; None of `amp eval` and `amp` themselves."""
    if words[0] == "torchrun":
        words = words[1:]
        while words and words[0].startswith("--"):
            words = words[1:]
        if not words:
            return "torchrun", [], None
    elif words[0] == "python":
        words = words[1:]
    if words[:2] == ["-m", "amp"] or words[0] == "amp":
        words = words[1 + (words[0] == "-m") :]
        registry = COMMANDS
        if words[:1] == ["eval"]:
            registry, words = EVALUATIONS, words[1:]
        if not words or words[0].startswith("-"):
            return "help", words, None
        assert words[0] in registry.names, words[0]
        return words[0], words[1:], registry.load(words[0]).main
    script, *words = words
    assert (ROOT / script).is_file(), script
    space: dict[str, Any] = {"__name__": "script"}
    sys.path.insert(0, str(ROOT / "eval"))
    exec(compile((ROOT / script).read_text(), script, "exec"), space)
    return SCRIPTS.get(script, Path(script).stem.removeprefix("eval_")), words, space["main"]


def _read_by_its_parser(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises UserError or SystemExit where a command does not take what it is given."""
    command, words, main = _main([OWN.get(word, word) for word in shlex.split(line)])
    if "--config_file" in words:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file(), f"{line}: no such file"
    if main is None:
        return
    if command in ("score", "prune"):
        config, options = (parse_score if command == "score" else parse_prune)("", words)
        model = config.model
        if options.named and not model.name.startswith(OWN_MODEL):
            frame = model.frame or find_frame(model.name)
            if not (model.pretrained or "").startswith(OWN_MODEL):
                find_weights(model, frame)
        return
    with monkeypatch.context() as patched:
        patched.setattr("sys.argv", [command, *words])
        if "--config_file" in words:
            patched.setattr(yaml_files, "build_config", _after(yaml_files.build_config))
        else:
            patched.setattr(argparse.ArgumentParser, "parse_args", _after(argparse.ArgumentParser.parse_args))
            patched.setattr(Parser, "parse_args", _after(Parser.parse_args))
        with pytest.raises(Parsed):
            main()


def _knows_its_options(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a command that a text names in passing, with some of its options."""
    _, words, main = _main(shlex.split(line))
    found: list[Any] = []

    def stop(self: argparse.ArgumentParser, *_: Any) -> None:
        found.extend(self._option_string_actions)
        raise Parsed

    with monkeypatch.context() as patched:
        for kind in (argparse.ArgumentParser, Parser):
            patched.setattr(kind, "parse_args", stop)
        if main:
            with pytest.raises(Parsed):
                main()
    for word in words:
        assert not word.startswith("--") or word in [*found, "--help", "--version"], f"{line}: no option {word}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_taken_by_its_own_parser(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    whole = [(line, _read_by_its_parser) for block in blocks(page, "bash") for line in commands(block.code)]
    named = [
        (word, _knows_its_options) for word in code_words(page) if re.match(r"(amp|python|torchrun|make) \S", word)
    ]
    for line, check in whole + named:
        first, *rest = shlex.split(line)
        if first == "make":
            assert {word for word in rest if "=" not in word} <= targets, line
        elif first in INSTALL:
            assert set(re.findall(r"\.\[(\w+)\]", line)) <= extras.keys(), line
        elif not MODULES.match(line) and not re.search(r"COMMAND|^amp NAME|NAME\.py", line):
            try:
                check(line.replace(" ...", ""), monkeypatch)
            except (UserError, SystemExit, AssertionError) as error:
                pytest.fail(f"{page}: {line}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_in_an_indented_block(page: str) -> None:
    assert not re.findall(r"^ {4}(?:amp|python|torchrun|make|pip) .*$", read(page), re.M)


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_are_named_exist(page: str) -> None:
    for word in code_words(page):
        named = re.match(r"(?:--set )?\"?((?:\w+\.)+\w+)(?:[=: ].*)?$", word)
        if named and named[1].partition(".")[0] in GROUPS and not FILES.search(named[1]):
            assert any(key == named[1] or key.startswith(f"{named[1]}.") for key in SETTINGS), f"{page}: {word}"


@pytest.mark.parametrize("page", PAGES)
def test_settings_files_that_are_shown_hold_settings(page: str) -> None:
    for block in blocks(page, "yaml"):
        for group, own in yaml.safe_load(block.code).items():
            for key in own:
                assert any(f"{other}.".startswith(f"{group}.{key}.") for other in SETTINGS), f"{block.place}: {key}"


def _names(tree: ast.AST) -> Iterator[str]:
    """`amp.save` and the like, the longest chains of attributes that begin with amp."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("amp."):
            yield ast.unparse(node)


def _check_keywords(call: ast.Call) -> None:
    name = ast.unparse(call.func)
    function = PrunedModel.resize if name.endswith(".resize") else None
    if name.startswith("amp."):
        function = eval(name, {"amp": amp})
    if function is None:
        return
    known = inspect.signature(function).parameters
    others = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg and k.arg not in known}
    if others and name in GROUPED:
        kind, *groups = GROUPED[name]
        from_keywords(kind, others, name, groups)
    else:
        assert not others or any(p.kind is p.VAR_KEYWORD for p in known.values()), f"{name}: {others}"


@pytest.mark.parametrize("page", PAGES)
def test_python_that_is_shown_names_what_exists(page: str) -> None:
    shown = [(block.place, block.code) for block in blocks(page, "python")]
    shown += [(f"{page}: `{word}`", word) for word in code_words(page) if re.fullmatch(r"amp\.\w+\(.*\)", word)]
    for place, code in shown:
        tree = ast.parse(code.replace("...", "None") if place.endswith("`") else code, place)
        for name in _names(tree):
            eval(name, {"amp": amp})
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                _check_keywords(node)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    for word in code_words(page):
        if re.fullmatch(r"(?:amp|configs|docs|eval|examples|tests)/[\w./-]*", word) and "NAME" not in word:
            assert (ROOT / word).exists() or (ROOT / f"{word}.py").exists(), f"{page}: {word}"
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        file, _, anchor = target.partition("#")
        if "://" not in target:
            aim = (ROOT / page).parent / file if file else ROOT / page
            assert aim.exists(), f"{page}: {target}"
            assert not anchor or anchor in _anchors(aim), f"{page}: {target}"


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def _texts() -> Iterator[str]:
    """The texts of the code, with a mark where a value goes."""
    for path in (ROOT / "amp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values)


def test_messages_with_a_remedy_are_those_of_the_code() -> None:
    section = read("docs/troubleshooting.md").split("## Messages of ")[1]
    messages = re.findall(r"^\| `(.+?)` \|", section, re.M)
    texts = set(_texts())
    assert len(messages) > 25
    for message in messages:
        parts = re.compile(".*".join(re.escape(part.strip()) for part in message.split("...")), re.S)
        assert any(parts.search(text) for text in texts), message


def test_the_first_page_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 250
