"""The command line of the entry scripts, and what `--help` and docs/settings.md say of the settings.

Light on purpose: `--help` and mistakes in the settings must answer before torch is imported.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from amp.errors import UserError
from amp.registry import ALLOCATIONS, COMPENSATIONS, CRITERIA, FRAMES, LAYOUTS, SEARCHES
from amp.settings.base import number_from
from amp.settings.load import CONFIGS, Config, load_config
from amp.settings.prune import PruneConfig

REGISTRIES = {
    "score.criterion": CRITERIA,
    "model.frame": FRAMES,
    "data.name": LAYOUTS,
    "prune.search": SEARCHES,
    "prune.allocation": ALLOCATIONS,
    "prune.compensation": COMPENSATIONS,
}
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
    options.add_argument(
        "--gpu_memory", type=number_from(0.001), default=80.0, metavar="GB", help="of --dry_run (default: 80)"
    )
    return options


@dataclass(frozen=True)
class PruneOptions:
    """Options of main_prune.py besides its settings.

    Attributes:
        sweep: thresholds to compare, in nats, ascending; none: prune to the settings'.
        sizes: shares of the dense tower's parameters to prune to, one after another, descending; none: the settings'.
        compensate_only: refit a folder that is pruned already.
        dry_run: print what a process's memory must hold.
        gpu_memory: of a dry run, in GB.
    """

    sweep: tuple[float, ...]
    sizes: tuple[float, ...]
    compensate_only: bool
    dry_run: bool
    gpu_memory: float


def parse_prune(description: str, argv: Sequence[str] | None = None) -> tuple[PruneConfig, PruneOptions]:
    """The command line of main_prune.py. Raises UserError; --help exits with 0."""
    parser = plan_options()
    add = parser.add_argument
    several_sizes = "size and entropy at several entropy_increases"
    add("--sweep", nargs="+", type=number_from(0), default=[], metavar="NATS", help=several_sizes)
    each = "prune to each of these shares of the parameters, into output.dir/params-SHARE"
    add("--sizes", nargs="+", type=number_from(0), default=[], metavar="SHARE", help=each)
    refit = "refit the out-projections of output.dir/pruned as prune.compensation says; writes output.dir/compensated"
    add("--compensate_only", action="store_true", help=refit)
    config = parse_args(PruneConfig, description, argv, [parser])
    args, _ = parser.parse_known_args(argv)
    sweep, sizes = tuple(sorted(set(args.sweep))), tuple(sorted(set(args.sizes), reverse=True))
    options = PruneOptions(sweep, sizes, args.compensate_only, args.dry_run, args.gpu_memory)
    own = config.prune
    if options.compensate_only and own.compensation == "none":
        raise UserError("--compensate_only", "prune.compensation is none; say --set prune.compensation=ridge, or mean")
    for key, given in (("widths", own.widths), ("target", own.target.asked)):
        if options.sweep and given:
            raise UserError("--sweep", f"prune.{key} must be null; the thresholds alone decide")
        if options.sizes and given:
            raise UserError("--sizes", f"prune.{key} must be null; the sizes alone decide")
    if sizes and (options.sweep or options.compensate_only):
        raise UserError("--sizes", "goes with neither --sweep nor --compensate_only")
    if wrong := [size for size in sizes if not 0 < size < 1]:
        raise UserError("--sizes", f"{wrong[0]:g}: shares lie between 0 and 1, for example 0.8 0.6 0.4")
    return config, options


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
    """docs/settings.md: a table for each kind of config; later ones leave out what an earlier one says alike.

    Then what the words of each registry mean.
    """
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
    for key, registry in REGISTRIES.items():
        meanings = "".join(
            f"\n| `{name}` | {registry.meaning(name).replace('|', chr(92) + '|')} |" for name in registry.names
        )
        parts.append(f"The words of `{key}`, each a file of `{registry.package.replace('.', '/')}/`:\n")
        parts[-1] += f"\n| word | meaning |\n|---|---|{meanings}"
    return "\n\n".join(parts) + "\n"


def _choices(kind: object) -> list[str]:
    """The words that a setting allows, if it is one of few."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return next((words for part in get_args(kind) if (words := _choices(part))), [])
