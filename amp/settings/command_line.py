"""The command line of the entry scripts, and what `--help` and docs/settings.md say of the settings.

Light on purpose: `--help` and mistakes in the settings must answer before torch is imported.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from amp.registry import FRAMES
from amp.settings.load import CONFIGS, Config, load_config

PAGE = """# Settings

Settings stand in a YAML; `--set key.path=value` overrides one, and `--help` of a script lists its own. The recipes are
in `configs/`. This page is written by `python -m amp.settings > docs/settings.md`."""


def parse_args(
    config_class: type[Config],
    description: str,
    argv: Sequence[str] | None = None,
    more: Sequence[argparse.ArgumentParser] = (),
) -> Config:
    """Reads --config_file, --frame and --set of an entry script. Raises UserError; --help exits with 0.

    Args:
        more: parsers of options of its own, which the script reads from them.
    """
    parser = argparse.ArgumentParser(
        description=description,
        parents=list(more),
        epilog="settings (YAML, or --set key.path=value):\n" + settings_help(config_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config_file", required=True, metavar="YAML", help="settings of the run (required)")
    parser.add_argument(
        "--frame", choices=FRAMES.names, help="library of the model (default: the YAML's, else open_clip)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, repeatable"
    )
    args: argparse.Namespace = parser.parse_args(argv)
    dense = "teacher" if "teacher" in config_class.model_fields else "model"
    frame: list[str] = [f"{dense}.frame={args.frame}"] if args.frame else []
    return load_config(config_class, args.config_file, [*args.set, *frame])


def plan_options() -> argparse.ArgumentParser:
    """--dry_run and --gpu_memory, for `parse_args`'s `more`."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--dry_run", action="store_true", help="print what a process's memory must hold, and end")
    options.add_argument("--gpu_memory", type=float, default=80.0, metavar="GB", help="of --dry_run (default: 80)")
    return options


def settings_of(config_class: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key path, default as JSON or "required", meaning) of every setting."""
    for key, field in config_class.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{prefix}{key}.")
            continue
        default = "required" if field.is_required() else json.dumps(field.default)
        choices = f": {', '.join(_choices(kind))}" if _choices(kind) else ""
        yield prefix + key, default, f"{field.description}{choices}"


def settings_help(config_class: type[BaseModel]) -> str:
    """One line for every setting: key path, meaning, default."""
    rows = settings_of(config_class)
    return "\n".join(
        f"  {key:<28} {meaning} ({default if default == 'required' else f'default {default}'})"
        for key, default, meaning in rows
    )


def settings_page() -> str:
    """docs/settings.md: a table for each kind of config; later ones leave out what an earlier one says alike."""
    said: set[tuple[str, str, str]] = set()
    parts = [PAGE]
    for scripts, config_class in CONFIGS.items():
        rows = [row for row in settings_of(config_class) if row not in said]
        beside = ", beside what stands above" if said else ""
        said.update(rows)
        parts.append(f"Of {scripts}{beside}:\n\n| setting | default | meaning |\n|---|---|---|")
        parts[-1] += "".join(
            f"\n| `{key}` | {default if default == 'required' else f'`{default}`'} | {meaning} |"
            for key, default, meaning in rows
        )
    return "\n\n".join(parts) + "\n"


def _choices(kind: object) -> list[str]:
    """The words that a setting allows, if it is one of few."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return next((words for part in get_args(kind) if (words := _choices(part))), [])
