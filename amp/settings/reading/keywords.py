"""Keyword arguments -> settings: every setting of the YAML, by its group or by its key alone.

prune(model, images, params=0.6, criterion="entropy", num_samples=512)
prune(model, images, prune={"target": {"flops": 0.6}}, score={"criterion": "entropy"})
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from amp.errors import UserError, nearest
from amp.settings.base import Settings
from amp.settings.reading.yaml_files import Raw


def from_keywords(
    config_class: type[BaseModel], keywords: Mapping[str, Any], source: str, groups: Collection[str]
) -> Raw:
    """The groups of a YAML file, from keyword arguments.

    Args:
        keywords: groups by their names, and keys of groups by theirs; `None` for a key is a value, for a group nothing.
        source: the function, for messages.
        groups: that may be said.
    Raises:
        UserError: an unknown name, a key that is given twice, or one that several groups have and mean differently.
    """
    places = _places(config_class, groups)
    raw: Raw = {}
    for name, value in keywords.items():
        if name in groups:
            if value is not None and not isinstance(value, Mapping):
                known = ", ".join(config_class.model_fields[name].annotation.model_fields)  # type: ignore[union-attr]
                raise UserError(f"{source}: {name}", f"is a group of settings ({known}); give a dictionary of them")
            _merge(raw, {name: dict(value or {})}, source)
        elif name in places:
            for path in places[name]:
                _merge(raw, _nested(path, value), source)
        else:
            words = [*places, *groups]
            raise UserError(f"{source}: {name}", f"no argument of this name{nearest(name, words)}")
    return raw


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merges both, group by group; the second one's values win."""
    whole = dict(first)
    for key, value in second.items():
        own = whole.get(key)
        whole[key] = merged(own, value) if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return whole


def _places(config_class: type[BaseModel], groups: Collection[str]) -> dict[str, list[tuple[str, ...]]]:
    """Key -> its groups. A key of several groups, such as `seed`, is set in all of them."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for path in _leaves(config_class):
        if path[0] in groups and path[-1] not in config_class.model_fields:
            found.setdefault(path[-1], []).append(path)
    return found


def _leaves(group: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in group.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from _leaves(kind, (*path, name))
        else:
            yield (*path, name)


def _nested(path: tuple[str, ...], value: Any) -> Raw:
    for name in reversed(path):
        value = {name: value}
    return value


def _merge(raw: Raw, more: Mapping[str, Any], source: str, path: tuple[str, ...] = ()) -> None:
    for key, value in more.items():
        own = raw.get(key)
        if isinstance(own, dict) and isinstance(value, Mapping):
            _merge(own, value, source, (*path, key))
        elif key in raw:
            raise UserError(f"{source}: {'.'.join((*path, key))}", "is given twice; give it once")
        else:
            raw[key] = value
