"""The command line of the entry scripts.

Light on purpose: `--help` and mistakes in the settings must answer before torch is imported.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from amp.errors import UserError, under
from amp.registry import FRAMES
from amp.settings.base import Parser, number_from
from amp.settings.data import batch_within
from amp.settings.model import library_before
from amp.settings.prune import RECOMMENDED, PruneConfig
from amp.settings.reading import sweep as sweeps
from amp.settings.reading.meanings import settings_help
from amp.settings.reading.sweep import Sweep, parse_sweep
from amp.settings.reading.yaml_files import Config, build_config, load_config, overridden

# What may be typed instead of a YAML: the setting that each option is, and its meaning.
NAMED = {
    "--model": (
        "model.name",
        "model to prune, for example timm/vit_base_patch16_224.augreg, or a folder of transformers",
    ),
    "--images": ("data.root", "folder of images; subfolders are searched too"),
    "--params": ("prune.target.params", "share of the tower's parameters to keep, for example 0.6"),
    "--weights": (
        "model.pretrained",
        "weights: a file or a tag of the library; random: try without weights (default: those of the name)",
    ),
    "--output": ("output.dir", "folder to write to (default: out/NAME)"),
}


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
    needed = parser.add_argument_group("what to run")
    needed.add_argument("--config_file", required=True, metavar="YAML", help="settings of the run (required)")
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
    options.add_argument("--dry_run", action="store_true", help="print how much memory each process needs, and exit")
    options.add_argument(
        "--gpu_memory",
        type=number_from(0.001),
        metavar="GB",
        help="GPU memory to plan for with --dry_run (default: that of this machine's GPU, else 80)",
    )
    return options


@dataclass(frozen=True)
class Named:
    """A model and images that are given on the command line instead of a YAML file.

    Attributes:
        settings: as a YAML would hold them: `RECOMMENDED`, and what was typed.
        overrides: by --set and --frame.
    """

    settings: Mapping[str, Any]
    overrides: tuple[str, ...]

    def says(self, key: str) -> bool:
        """Whether --set gives this setting."""
        return any(word.startswith(f"{key}=") for word in self.overrides)

    def config(self, **groups: Mapping[str, Any]) -> PruneConfig:
        """The settings, with those in `groups` replaced: `data={"batch_size": 32}`. Raises UserError."""
        settings = {**self.settings, **{key: {**self.settings[key], **own} for key, own in groups.items()}}
        with options_named():
            return build_config(PruneConfig, settings, self.overrides, "")


@contextmanager
def options_named() -> Iterator[None]:
    """UserErrors name the option of a setting, if it has one: --images instead of data.root."""
    with ExitStack() as stack:
        for option, (key, _) in NAMED.items():
            stack.enter_context(under(option, instead_of=key))
        yield


def _recommended_data(overrides: Sequence[str]) -> dict[str, int]:
    """The recommended numbers of images, which give way to those that --set gives."""
    own = dict(RECOMMENDED["data"])
    said: Any = overridden({"data": {}}, overrides)[0]["data"]
    said, counts = (said if isinstance(said, dict) else {}), own.keys() - {"batch_size"}
    if isinstance(said.get("batch_size"), int):
        return own | {key: max(own[key], said["batch_size"]) for key in counts}
    return own | {"batch_size": batch_within(own["batch_size"], *map(said.get, counts))}


def _named_of(args: argparse.Namespace, overrides: Sequence[str]) -> Named | None:
    """None if a YAML file is given."""
    given = {option: value for option in NAMED if (value := vars(args)[option.removeprefix("--")]) is not None}
    if args.config_file and given:
        option, value = next(iter(given.items()))
        raise UserError(option, f"cannot be used with --config_file; use --set {NAMED[option][0]}={value} instead")
    if args.config_file:
        return None
    if not given:
        raise UserError("--config_file", "missing; give a YAML of settings, or --model and --images")
    for option in ("--model", "--images"):
        if not given.get(option):
            raise UserError(option, f"missing; without --config_file, give the {NAMED[option][1]}")
    settings: dict[str, dict[str, Any]] = {group: dict(own) for group, own in RECOMMENDED.items()}
    frame, name = library_before(args.model)
    settings["model"] = {"name": name, "pretrained": args.weights} | ({"frame": frame} if frame else {})
    settings["data"] = {"name": "imagefolder", "root": args.images, **_recommended_data(overrides)}
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
        gpu_memory: of a dry run, in GB; None: of the GPU at hand.
    """

    named: Named | None
    dry_run: bool
    gpu_memory: float | None

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
    """Like `parse_args`, but a model and images may replace the YAML file; also returns all options."""
    parser = _parser(PruneConfig, description, more)
    group = parser.add_argument_group("what to prune, with the recommended settings")
    for option, (_, meaning) in NAMED.items():
        kind: Any = float if option == "--params" else str
        group.add_argument(option, type=kind, metavar=option.removeprefix("--").upper(), help=meaning)
    file = parser.add_argument_group("or, instead of these options")
    file.add_argument("--config_file", metavar="YAML", help="settings of the run")
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
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add(sweeps.OPTION, nargs="+", default=[], metavar=("KIND", "VALUE"), help=sweeps.HELP)
    refit = (
        "refit the out-projections of pruned/ in the output folder with prune.compensation; writes compensated/ there"
    )
    add("--compensate_only", action="store_true", help=refit)
    config, named, args = _parse_named(description, argv, [parser, plan_options()])
    if named and "prune" not in named.settings:
        raise UserError("--params", f"missing; give the {NAMED['--params'][1]}, or --set prune.target.throughput=1.5")
    sweep = parse_sweep(args.sweep)
    if args.sweep and args.params is not None:
        raise UserError("--params", f"cannot be used with {sweeps.OPTION}, which sets the sizes")
    options = PruneOptions(named, args.dry_run, args.gpu_memory, sweep=sweep, compensate_only=args.compensate_only)
    own = config.prune
    if options.compensate_only and own.compensation == "none":
        raise UserError("--compensate_only", "prune.compensation is none; use --set prune.compensation=ridge, or mean")
    if options.compensate_only and own.recover_steps:
        text = f"does not work with prune.recover_steps {own.recover_steps}; add --set prune.recover_steps=0"
        raise UserError("--compensate_only", text)
    for key, given in (("widths", own.widths), ("target", own.target.asked)):
        if args.sweep and given:
            raise UserError(sweeps.OPTION, f"prune.{key} must be null; the values after {sweeps.OPTION} set the sizes")
    if not sweep.targets:
        config.check_has_size()
    if args.sweep and options.compensate_only:
        raise UserError(sweeps.OPTION, "cannot be used with --compensate_only")
    return config, options
