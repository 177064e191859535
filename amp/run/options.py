"""Options of a script that has no settings file: fields of a frozen dataclass, each declared once with its help.

@dataclass(frozen=True, kw_only=True)
class Options:
    batch_size: int = count("images in one batch", 256, least=1)

options = Options(**read_options(Options, __doc__)[1])
"""

import argparse
from dataclasses import MISSING, field, fields
from typing import Any

from amp.settings.base import MOST, Parser, at_least


def option(text: str, default: object = MISSING, aside: bool = False, also: str | None = None, **how: object) -> Any:
    """A field of a class of options.

    Args:
        text: for `--help`; the default is put after it where it is a word or a number.
        default: without one the option is required.
        aside: whether it leaves the result as it is.
        also: another name of it, as other commands call it.
        how: it is read, as for `argparse.ArgumentParser.add_argument`.
    """
    if default is MISSING:
        return field(
            metadata={"aside": aside, "also": also, "how": how | {"required": True, "help": f"{text} (required)"}}
        )
    shown = default is not None and not isinstance(default, (bool, tuple))
    how |= {"default": default, "help": f"{text} (default: %(default)s)" if shown else text}
    return field(default=default, metadata={"aside": aside, "also": also, "how": how})


def argument(text: str, **how: object) -> Any:
    """A field that is typed without its name, and is required."""
    return field(metadata={"aside": False, "positional": True, "how": how | {"help": text}})


def count(text: str, default: int | None, least: int, aside: bool = False, metavar: str = "N", most: int = MOST) -> Any:
    """An option that is a whole number from `least` to `most`."""
    return option(text, default, aside, type=at_least(least, most), metavar=metavar)


def read_options(declared: type, description: str | None) -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """The command line's values by the fields of `declared`, lists as tuples; and the parser, for further mistakes.

    What argparse refuses exits with 2.
    """
    parser = Parser(description=description)
    for own in fields(declared):
        names = [own.name if own.metadata.get("positional") else f"--{own.name}", own.metadata.get("also")]
        parser.add_argument(*filter(None, names), **own.metadata["how"])
    values = vars(parser.parse_args())
    return parser, {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def decisive(options: Any) -> dict[str, Any]:
    """The options that decide a result: all but those declared aside."""
    return {own.name: getattr(options, own.name) for own in fields(options) if not own.metadata["aside"]}
