"""The command line of the entry scripts, and what `--help` and docs/settings.md say of the settings.

Light on purpose: `--help` and mistakes in the settings must answer before torch is imported.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from amp.errors import UserError, under
from amp.registry import ALLOCATIONS, COMPENSATIONS, CRITERIA, FRAMES, LAYOUTS, SEARCHES
from amp.settings.base import Parser, group_of, number_from
from amp.settings.model import library_before
from amp.settings.prune import RECOMMENDED, PruneConfig
from amp.settings.reading import sweep as sweeps
from amp.settings.reading.sweep import Sweep, parse_sweep
from amp.settings.reading.yaml_files import CONFIGS, Config, build_config, load_config

REGISTRIES = {
    "score.criterion": CRITERIA,
    "model.frame": FRAMES,
    "data.name": LAYOUTS,
    "prune.search": SEARCHES,
    "prune.allocation": ALLOCATIONS,
    "prune.compensation": COMPENSATIONS,
}
# What may be typed instead of a YAML: the setting that each option is, and its meaning.
NAMED = {
    "--model": ("model.name", "a model, for example timm/vit_base_patch16_224.augreg, or a folder of transformers"),
    "--weights": (
        "model.pretrained",
        "a file or a tag of the library; random: to try it out (default: the name's own)",
    ),
    "--images": ("data.root", "a folder of images, at any depth"),
    "--params": ("prune.target.params", "the share of the tower's parameters to keep, for example 0.6"),
    "--output": ("output.dir", "the folder to write (default: out/NAME)"),
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
    parser = _parser(config_class, description, more)
    parser.add_argument("--config_file", required=True, metavar="YAML", help="settings of the run (required)")
    args: argparse.Namespace = parser.parse_args(argv)
    return load_config(config_class, args.config_file, _overrides(args, config_class))


def _parser(
    config_class: type[BaseModel], description: str, more: Sequence[argparse.ArgumentParser]
) -> argparse.ArgumentParser:
    parser = Parser(
        description=description,
        parents=list(more),
        epilog="settings (YAML, or --set key.path=value):\n" + settings_help(config_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    frame, override = "library of the model (default: the YAML's, else open_clip)", "override a setting, repeatable"
    parser.add_argument("--frame", choices=FRAMES.names, help=frame)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=override)
    return parser


def _overrides(args: argparse.Namespace, config_class: type[BaseModel]) -> list[str]:
    dense = "teacher" if "teacher" in config_class.model_fields else "model"
    return [*args.set, *([f"{dense}.frame={args.frame}"] if args.frame else [])]


def plan_options() -> argparse.ArgumentParser:
    """--dry_run and --gpu_memory, for `parse_args`'s `more`."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--dry_run", action="store_true", help="print what a process's memory must hold, and end")
    options.add_argument(
        "--gpu_memory", type=number_from(0.001), default=80.0, metavar="GB", help="of --dry_run (default: 80)"
    )
    return options


@dataclass(frozen=True)
class Named:
    """A model and images that are typed instead of a YAML.

    Attributes:
        settings: as a YAML would hold them: `RECOMMENDED`, and what was typed.
        overrides: by --set and --frame.
    """

    settings: Mapping[str, Any]
    overrides: tuple[str, ...]

    def config(self, **groups: Mapping[str, Any]) -> PruneConfig:
        """The settings, where `groups` do not say otherwise: `data={"batch_size": 32}`. Raises UserError."""
        settings = {**self.settings, **{key: {**self.settings[key], **own} for key, own in groups.items()}}
        with options_named():
            return build_config(PruneConfig, settings, self.overrides, "")


@contextmanager
def options_named() -> Iterator[None]:
    """UserErrors of a setting that has an option of its own are told of that option: --images instead of data.root."""
    with ExitStack() as stack:
        for option, (key, _) in NAMED.items():
            stack.enter_context(under(option, instead_of=key))
        yield


def _named_of(args: argparse.Namespace, overrides: Sequence[str]) -> Named | None:
    """None where a YAML is given."""
    given = {option: value for option in NAMED if (value := vars(args)[option.removeprefix("--")]) is not None}
    if args.config_file and given:
        option, value = next(iter(given.items()))
        raise UserError(option, f"goes without --config_file; beside it say --set {NAMED[option][0]}={value}")
    if args.config_file:
        return None
    if not given:
        raise UserError("--config_file", "missing; give a YAML of settings, or --model and --images")
    for option in ("--model", "--images"):
        if not given.get(option):
            raise UserError(option, f"missing; without --config_file, {NAMED[option][1]}")
    settings: dict[str, dict[str, Any]] = {group: dict(own) for group, own in RECOMMENDED.items()}
    frame, name = library_before(args.model)
    settings["model"] = {"name": name, "pretrained": args.weights} | ({"frame": frame} if frame else {})
    settings["data"] |= {"name": "imagefolder", "root": args.images}
    settings["output"] = {"dir": args.output or f"out/{Path(name).resolve().name.removesuffix('.json')}"}
    if args.params is not None:
        settings["prune"]["target"] = {"params": args.params}
    elif not vars(args).get("sweep") and not any(word.startswith("prune.target.") for word in overrides):
        del settings["prune"]
    return Named(settings, tuple(overrides))


@dataclass(frozen=True)
class ScoreOptions:
    """Options of main_score.py besides its settings.

    Attributes:
        named: what was typed instead of a YAML.
        dry_run: print what a process's memory must hold.
        gpu_memory: of a dry run, in GB.
    """

    named: Named | None
    dry_run: bool
    gpu_memory: float

    def as_typed(self) -> AbstractContextManager[None]:
        """Within it, mistakes are told of what was typed: of an option where there is no YAML, else of a setting."""
        return options_named() if self.named else nullcontext()


@dataclass(frozen=True, kw_only=True)
class PruneOptions(ScoreOptions):
    """Options of main_prune.py besides its settings.

    Attributes:
        sweep: what several networks are asked for, which come one after another.
        compensate_only: refit a folder that is pruned already.
    """

    sweep: Sweep
    compensate_only: bool


def _parse_named(
    description: str, argv: Sequence[str] | None, more: Sequence[argparse.ArgumentParser]
) -> tuple[PruneConfig, Named | None, argparse.Namespace]:
    """`parse_args` where a model and images may stand instead of the YAML; and all that was typed."""
    parser = _parser(PruneConfig, description, more)
    parser.add_argument("--config_file", metavar="YAML", help="settings of the run")
    group = parser.add_argument_group("instead of --config_file, with the settings that keep most")
    for option, (_, meaning) in NAMED.items():
        kind: Any = float if option == "--params" else str
        group.add_argument(option, type=kind, metavar=option.removeprefix("--").upper(), help=meaning)
    args: argparse.Namespace = parser.parse_args(argv)
    overrides = _overrides(args, PruneConfig)
    if named := _named_of(args, overrides):
        return named.config(), named, args
    return load_config(PruneConfig, args.config_file, overrides), None, args


def parse_score(description: str, argv: Sequence[str] | None = None) -> tuple[PruneConfig, ScoreOptions]:
    """The command line of main_score.py. Raises UserError; --help exits with 0."""
    config, named, args = _parse_named(description, argv, [plan_options()])
    return config, ScoreOptions(named, args.dry_run, args.gpu_memory)


def parse_prune(description: str, argv: Sequence[str] | None = None) -> tuple[PruneConfig, PruneOptions]:
    """The command line of main_prune.py. Raises UserError; --help exits with 0."""
    parser = plan_options()
    add = parser.add_argument
    add(sweeps.OPTION, nargs="+", default=[], metavar=("KIND", "VALUE"), help=sweeps.HELP)
    refit = "refit the out-projections of output.dir/pruned as prune.compensation says; writes output.dir/compensated"
    add("--compensate_only", action="store_true", help=refit)
    config, named, args = _parse_named(description, argv, [parser])
    if named and "prune" not in named.settings:
        raise UserError("--params", f"missing; {NAMED['--params'][1]}, or --set prune.target.throughput=1.5")
    sweep = parse_sweep(args.sweep)
    if args.sweep and args.params is not None:
        raise UserError("--params", f"goes without {sweeps.OPTION}, which names the sizes itself")
    options = PruneOptions(named, args.dry_run, args.gpu_memory, sweep=sweep, compensate_only=args.compensate_only)
    own = config.prune
    if options.compensate_only and own.compensation == "none":
        raise UserError("--compensate_only", "prune.compensation is none; say --set prune.compensation=ridge, or mean")
    if options.compensate_only and own.recover_steps:
        text = f"takes no prune.recover_steps, which is {own.recover_steps}; say --set prune.recover_steps=0 beside it"
        raise UserError("--compensate_only", text)
    for key, given in (("widths", own.widths), ("target", own.target.asked)):
        if args.sweep and given:
            raise UserError(sweeps.OPTION, f"prune.{key} must be null; the values behind {sweeps.OPTION} alone decide")
    if not sweep.targets:
        config.check_has_size()
    if args.sweep and options.compensate_only:
        raise UserError(sweeps.OPTION, "goes without --compensate_only")
    return config, options


def settings_of(config_class: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key path, default as JSON or "required", meaning) of every setting."""
    for key, field in config_class.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{prefix}{key}.")
            continue
        optional = group_of(kind) if type(None) in get_args(kind) else None
        default = "required" if field.is_required() else json.dumps(field.default)
        choices = f": {', '.join(_choices(kind))}" if _choices(kind) else ""
        yield prefix + key, default, f"{field.description}{choices}"
        if optional is not None:
            yield from settings_of(optional, f"{prefix}{key}.")


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
