"""Adaptive MLP Pruning: smaller vision transformers with the same features, without labels.

The command `amp`. Each of its commands is a file here, those of `amp eval` in `eval/`: a docstring, whose first line is
what `amp --help` says, and a `main()` that reads `sys.argv`. The scripts of a checkout call the same functions.
"""

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from amp.errors import UserError, nearest
from amp.registry import COMMANDS, Registry
from amp.version import __version__


def main() -> None:
    """What is installed as `amp`."""
    from amp.run.console import run_script

    run_script(lambda: choose("amp", COMMANDS, __doc__))


def choose(
    program: str,
    registry: Registry,
    description: str | None,
    names: Sequence[str] | None = None,
    other: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Runs the command that the first word of the command line names; to that one, the rest is the command line.

    Args:
        program: how it is called, as people type it.
        registry: of the commands. None is imported but the one that is asked for.
        description: for `--help`, of which the first line is shown.
        names: of those that it offers; None: all of them.
        other: words that people may take for a command -> what to type.
    Raises:
        UserError: there is no such command.
    """
    names = names or registry.names
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in names:
        sys.argv = [f"{program} {name}", *sys.argv[2:]]
        registry.load(name).main()
    elif name in ("-h", "--help"):
        print(f"usage: {program} COMMAND ...\n\n{(description or '').partition(chr(10))[0]}\n")
        width = max(map(len, names))
        for known in names:
            print(f"  {known:{width}}  {registry.meaning(known)}")
        print(f"\nRun `{program} COMMAND --help` for the options of a command.")
    elif name == "--version":
        print(f"{program} {__version__}")
    else:
        close = f"; use {program} {other[name]}" if name in other else nearest(name, names)
        raise UserError(program, f"no command {name!r}{close} (known: {', '.join(names)})")
