"""YAML and `--set` -> settings. Every error names file, key, value and what is allowed."""

import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from amp.errors import UserError, nearest, several
from amp.settings.compare import CompareConfig
from amp.settings.distill import DistillConfig
from amp.settings.prune import PruneConfig

# A YAML file as it is read.
Raw = dict[str, object]
Config = TypeVar("Config", PruneConfig, DistillConfig, CompareConfig)
CONFIGS: dict[str, type[BaseModel]] = {
    "main_score.py and main_prune.py": PruneConfig,
    "distill.py": DistillConfig,
    "eval/eval_compare.py": CompareConfig,
}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-2 as a string and keeps the last of two equal keys; users mean neither."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if str(key_node.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(str(key_node.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(config_class: type[Config], config_file: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Settings from a YAML file, with 'key.path=value' overrides. Raises UserError."""
    raw = _read_yaml(Path(config_file))
    overridden: set[str] = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}", "expected key.path=value, for example --set data.batch_size=64")
        _set_path(raw, key, _parse_value(override, text))
        overridden.add(key)
    try:
        # Through JSON, since strict types accept a list for a tuple only there.
        return config_class.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise _explain(error, config_class, str(config_file), overridden) from None


def _read_yaml(path: Path) -> Raw:
    if path.is_dir():
        raise UserError(path, "is a folder; give one of its YAML files")
    if not path.is_file():
        siblings = [str(p) for p in Path("configs").glob("**/*.yaml")]
        raise UserError(path, f"no such file{nearest(str(path), siblings)}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1} " if mark else ""
        raise UserError(path, f"{where}not a YAML file: {reason}") from None
    if raw is None:
        raise UserError(path, "is empty")
    if not isinstance(raw, dict):
        raise UserError(path, f"expected settings as 'key: value' lines, found {type(raw).__name__}")
    return raw


def _parse_value(override: str, text: str) -> object:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {override}", "the value is not YAML") from None


def _set_path(raw: Raw, key: str, value: object) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if raw.get(parent) is None:
            raw[parent] = {}
        group = raw[parent]
        if not isinstance(group, dict):
            raise UserError(f"--set {key}", f"{parent!r} is a value, not a group of settings")
        raw = group
    raw[last] = value


def _explain(error: ValidationError, config_class: type[BaseModel], file: str, overridden: set[str]) -> UserError:
    """All mistakes in one line, unknown keys first: a misspelt one makes another look missing."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    found = several([_explain_one(problem, config_class, file, overridden) for problem in problems[:3]])
    rest = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    known = [name for name, other in CONFIGS.items() if other is not config_class]
    other = f" (a config of {known[0]}?)" if sum(p["type"] == "missing" for p in problems) > 1 else ""
    return UserError(found.key, f"{found.text}{rest}{other}")


def _explain_one(problem: ErrorDetails, config_class: type[BaseModel], file: str, overridden: set[str]) -> UserError:
    key = ".".join(str(part) for part in problem["loc"])
    own = [o for o in overridden if f"{o}.".startswith(f"{key}.") or f"{key}.".startswith(f"{o}.")]
    source = f"--set {key}" if own else f"{file}: {key}" if key else file
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = list(_group(config_class, problem["loc"][:-1]).model_fields)
        text = f"unknown key{nearest(str(problem['loc'][-1]), known)} (known: {', '.join(known)})"
    elif problem["type"] == "missing":
        text = "missing, and it has no default"
    elif problem["type"] == "value_error":
        text = message
    else:
        message = message.replace("a valid array", "a list, for example [1, 2]")
        text = f"{json.dumps(problem['input'], default=str)} is not allowed: {message[0].lower() + message[1:]}"
    return UserError(source, text)


def _group(config_class: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The class of the settings below `path`."""
    for part in path:
        kind = config_class.model_fields[str(part)].annotation
        assert isinstance(kind, type)
        config_class = kind
    return config_class
