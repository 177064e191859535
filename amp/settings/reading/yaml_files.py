"""YAML and `--set` -> settings. Every error names file, key, value and what is allowed."""

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from amp.errors import UserError, joined, nearest, several, shortened
from amp.settings.base import DEEPEST, DIGITS, group_of
from amp.settings.compare import CompareConfig
from amp.settings.distill import DistillConfig
from amp.settings.prune import PruneConfig

# A YAML file as it is read.
Raw = dict[str, object]
Config = TypeVar("Config", PruneConfig, DistillConfig, CompareConfig)
Group = TypeVar("Group", bound=BaseModel)
CONFIGS: dict[str, type[BaseModel]] = {
    "main_score.py and main_prune.py": PruneConfig,
    "distill.py": DistillConfig,
    "eval/eval_compare.py": CompareConfig,
}


MOST_CHARACTERS = 10**6
_QUOTED = re.compile("'([^']*)'")


class _Reader(yaml.SafeLoader):
    """YAML as settings need it: mappings, lists and plain scalars, nothing that builds or repeats anything.

    YAML 1.1 reads 1e-2 as a string, 1:30 as 90 and keeps the last of two equal keys; users mean none of it.
    """

    def value(self) -> object:
        """The one document's value. Raises yaml.YAMLError."""
        self.get_event()
        if self.check_event(yaml.StreamEndEvent):
            return None
        self.get_event()
        value = self._node(0)
        self.get_event()
        if not self.check_event(yaml.StreamEndEvent):
            raise _refused("a second document begins", self.peek_event())
        return value

    def _node(self, depth: int) -> object:
        event = self.get_event()
        if depth > DEEPEST:
            raise _refused(f"nested more than {DEEPEST} deep", event)
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise _refused("anchors and aliases (& and *) are not allowed; write the value out", event)
        if event.tag not in (None, "!"):
            raise _refused(f"tags are not allowed, such as {shortened(event.tag, DIGITS)}", event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not self.check_event(yaml.SequenceEndEvent):
                items.append(self._node(depth + 1))
            self.get_event()
            return items
        return self._scalar(event) if event.implicit[0] else event.value

    def _mapping(self, depth: int) -> Raw:
        found: Raw = {}
        while not self.check_event(yaml.MappingEndEvent):
            event = self.peek_event()
            key = event.value if isinstance(event, yaml.ScalarEvent) else None
            if key is None:
                raise _refused("a key must be a word", event)
            if key in found:
                raise _refused(f"key {shortened(key, DIGITS)!r} appears twice", event)
            self._node(depth + 1)
            found[key] = self._node(depth + 1)
            if found[key] is None and ":" in key:
                raise _refused(f"a space is missing after the colon of {shortened(key, DIGITS)!r}", event)
        self.get_event()
        return found

    def _scalar(self, event: yaml.ScalarEvent) -> object:
        text = event.value
        kind = self.resolve(yaml.ScalarNode, text, (True, False)).rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool":
            return self.bool_values[text.lower()]
        if kind not in ("int", "float") or ":" in text:
            return text
        if len(text) > DIGITS:
            raise _refused(f"a number of {len(text)} digits", event)
        try:
            return _whole(text) if kind == "int" else _real(text)
        except ValueError:
            return text


_Reader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _whole(text: str) -> int:
    """0x1f, 0b11 and 017 too."""
    body = text.lstrip("+-")
    base = {"0x": 16, "0b": 2}.get(body[:2], 8 if body[:1] == "0" and len(body) > 1 else 10)
    return int(text.replace("_", ""), base)


def _real(text: str) -> float:
    """1e-3, .inf and .nan too."""
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


def _refused(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def load_config(config_class: type[Config], config_file: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Settings from a YAML file, with 'key.path=value' overrides. Raises UserError."""
    return build_config(config_class, _read_yaml(Path(config_file)), overrides, str(config_file))


def build_config(
    config_class: type[Config], settings: Mapping[str, Any], overrides: Sequence[str], file: str
) -> Config:
    """Settings from the content of a YAML file, with 'key.path=value' overrides.

    Raises:
        UserError: of the setting `KEY`, put as `FILE: KEY` where `file` is not empty.
    """
    raw, keys = overridden(settings, overrides)
    return validate(config_class, raw, file, keys)


def overridden(settings: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Raw, set[str]]:
    """The content of a YAML file with 'key.path=value' overrides, and their keys. Raises UserError."""
    raw: Raw = copy.deepcopy(dict(settings))
    keys: set[str] = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}", "expected key.path=value, for example --set data.batch_size=64")
        _set_path(raw, key, _parse_value(override, text))
        keys.add(key)
    return raw, keys


def validate(config_class: type[Group], raw: Raw, source: str, by_set: Collection[str] = ()) -> Group:
    """Settings from plain values.

    Args:
        source: where they come from, for messages: a file, or a function.
        by_set: keys that were given by --set.
    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    try:
        # Through JSON, since strict types accept a list for a tuple only there.
        return config_class.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise _explain(error, config_class, source, by_set) from None


def _read_yaml(path: Path) -> Raw:
    try:
        if path.is_dir():
            raise UserError(path, "is a folder; give one of its YAML files")
        if not path.is_file():
            siblings = [str(p) for p in Path("configs").glob("**/*.yaml")]
            raise UserError(path, f"no such file{nearest(str(path), siblings)}")
        if path.stat().st_size > MOST_CHARACTERS:
            raise UserError(path, f"is longer than {MOST_CHARACTERS} characters; a settings file has only a few lines")
        raw = _Reader(path.read_text(encoding="utf-8")).value()
    except OSError as error:
        raise UserError(shortened(path), f"cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(path, f"{_where(error)}not a YAML file of settings: {_reason(error)}") from None
    if raw is None:
        raise UserError(path, "is empty")
    if not isinstance(raw, dict):
        raise UserError(path, f"expected settings as 'key: value' lines, found {type(raw).__name__}")
    return raw


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1} " if mark else ""


def _reason(error: Exception) -> str:
    return shortened(getattr(error, "problem", None) or error)


def _parse_value(override: str, text: str) -> object:
    try:
        return _Reader(text).value()
    except yaml.YAMLError as error:
        raise UserError(f"--set {shortened(override)}", f"the value is not YAML ({_reason(error)})") from None


def _set_path(raw: Raw, key: str, value: object) -> None:
    *parents, last = key.split(".")
    if len(parents) > DEEPEST or not key.isprintable():
        raise UserError(f"--set {shortened(ascii(key))}", "is not the key of a setting, such as data.batch_size")
    for parent in parents:
        if raw.get(parent) is None:
            raw[parent] = {}
        group = raw[parent]
        if not isinstance(group, dict):
            raise UserError(f"--set {key}", f"{parent!r} is a value, not a group of settings")
        raw = group
    raw[last] = value


def _explain(error: ValidationError, config_class: type[BaseModel], file: str, by_set: Collection[str]) -> UserError:
    """All mistakes in one line, unknown keys first: a misspelt key makes another one look missing."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    found = several([_explain_one(problem, config_class, file, by_set) for problem in problems[:3]])
    rest = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
    known = [name for name, other in CONFIGS.items() if other is not config_class]
    other = f" (a config of {known[0]}?)" if sum(p["type"] == "missing" for p in problems) > 1 else ""
    return UserError(found.key, f"{joined(found.text, *rest)}{other}")


def _explain_one(problem: ErrorDetails, config_class: type[BaseModel], file: str, by_set: Collection[str]) -> UserError:
    key = ".".join(str(part) for part in problem["loc"])
    own = [o for o in by_set if f"{o}.".startswith(f"{key}.") or f"{key}.".startswith(f"{o}.")]
    source = f"--set {key}" if own else ": ".join(filter(None, (file, key))) or "settings"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = list(_group(config_class, problem["loc"][:-1]).model_fields)
        text = f"unknown key{nearest(str(problem['loc'][-1]), known)} (known: {', '.join(known)})"
    elif problem["type"] == "missing":
        text = "missing, and it has no default"
    elif problem["type"] == "value_error":
        text = message
    elif problem["type"] == "model_type":
        text = _ask_for_one(problem, config_class, bool(own))
    else:
        message = message.replace("a valid array", "a list, for example [1, 2]")
        text = (
            f"{shortened(json.dumps(problem['input'], default=str))} is not allowed: {message[0].lower() + message[1:]}"
        )
        if problem["type"] == "literal_error":
            text += nearest(str(problem["input"]), _QUOTED.findall(problem["ctx"]["expected"]))
    return UserError(source, text)


def _ask_for_one(problem: ErrorDetails, config_class: type[BaseModel], by_set: bool) -> str:
    """What to write if a group of settings was given a plain value."""
    group, path, value = _group(config_class, problem["loc"]), ".".join(map(str, problem["loc"])), problem["input"]
    first = next((k for k, field in group.model_fields.items() if field.is_required()), next(iter(group.model_fields)))
    shown = shortened("VALUE" if value is None or isinstance(value, (list, dict)) else value, DIGITS)
    example = f"--set {path}.{first}={shown}" if by_set else f"{path}: {{{first}: {shown}}}"
    return f"is a group of settings ({', '.join(group.model_fields)}); write for example {example}"


def _group(config_class: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The class of the settings below `path`."""
    for part in path:
        field = config_class.model_fields.get(str(part))  # None: a name of one's own, as of a row
        config_class = config_class if field is None else group_of(field.annotation) or config_class
    return config_class
