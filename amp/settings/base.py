"""The parts of all settings: the frozen base class, the bounds of numbers and names, the names of registries.

Every number has an upper bound too, so that a typing error is refused at once instead of filling the memory.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from amp.errors import UserError, joined, nearest, shortened
from amp.registry import Registry
from amp.settings.verbosity import Verbose

MOST = 10**9
MOST_SIDE = 8192
MOST_WORKERS = 1024
MOST_LAYERS = 512
MOST_WIDTH = 10**6
DEEPEST = 20
DIGITS = 40

# Of a number in a model's description, by a part of its name, the first that fits; of any other one 10^8.
SIDES = ("image_size", "img_size", "input_size", "patch_size")
MOST_OF_A_MODEL = {
    **dict.fromkeys(SIDES, MOST_SIDE),
    **dict.fromkeys(("layers", "depth"), MOST_LAYERS),
    **dict.fromkeys(("width", "dim", "heads", "hidden_size", "intermediate_size"), 2**16),
    "mlp_ratio": 1024,
    "": 10**8,
}
ELSEWHERE = ("hf-hub:", "hf_hub:", "hf:", "local-dir:")


def _share(value: float) -> float:
    if 0 < value < 1:
        return value
    percent = f"; for {value:g} % write {value / 100:g}" if 1 < value < 100 else ""
    raise ValueError(f"{value:g} is not a share: it must be greater than 0 and less than 1{percent}")


def _positive(value: float) -> float:
    if 1e-9 <= value <= 1e9:
        return value
    raise ValueError(f"{value:g} is not allowed: it must be greater than 0, from 1e-09 to 1e+09")


def _place(text: str) -> str:
    """As a path, or a name that a library knows."""
    if not text.strip():
        raise ValueError("is empty")
    if not text.isprintable():
        raise ValueError(f"{shortened(ascii(text))} contains control characters")
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > 255 or len(text) > 4000:
        raise ValueError(f"{shortened(text[:40])}... is {len(text)} characters; a name may have 255, a path 4000")
    return text


def check_numbers(values: Any, name: str = "", depth: int = 0) -> Any:
    """Returns the values of a model's description, which may be nested, unchanged.

    Raises:
        ValueError: a number in them is not finite, or more than any model has, or a library would fetch what a word
            names; it is named.
    """
    if depth > DEEPEST:
        raise ValueError(f"{name}: nested more than {DEEPEST} deep")
    listed = isinstance(values, (list, tuple))
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values) if listed else ():
        # The items of a list are what the list is called: img_size: [224, 224].
        check_numbers(value, name if listed else f"{name}.{key}".removeprefix("."), depth + 1)
    last = name.rpartition(".")[2]
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        most = next(most for part, most in MOST_OF_A_MODEL.items() if part in last)
        least = 1 if last.endswith(SIDES) else 0 if most == MOST_LAYERS else -most
        if not (math.isfinite(values) and least <= values <= most):
            raise ValueError(f"{name}: {shortened(values, DIGITS)} is not allowed: from {least} to {most}")
    if isinstance(values, str) and last.endswith(SIDES):
        raise ValueError(f"{name}: {shortened(values, DIGITS)!r} is not allowed: pixels, from 1 to {MOST_SIDE}")
    if isinstance(values, str) and values.startswith(ELSEWHERE):
        raise ValueError(f"{name}: {values!r} would be fetched from elsewhere; not allowed")
    return values


def check_template(text: str) -> str:
    """Returns a prompt. Raises ValueError unless it contains `{c}`, for the class name, and no other braces."""
    if "{c}" not in text:
        raise ValueError(f"{text!r}: must contain {{c}}, the place of the class name")
    if set("{}") & set(text.replace("{c}", "")):
        raise ValueError(f"{text!r}: must not contain braces other than {{c}}")
    return text


Precision = Literal["fp32", "bf16"]
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Positive = Annotated[float, AfterValidator(_positive)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Fraction = Annotated[float, AfterValidator(_share)]
Item = TypeVar("Item")
Some = Annotated[tuple[Item, ...], Field(min_length=1)]  # A list that says something: one that is empty says nothing.
PathOrName = Annotated[str, AfterValidator(_place)]
Template = Annotated[str, AfterValidator(check_template)]
ModelArguments = Annotated[dict[str, Any], AfterValidator(check_numbers)]

# Of a setting that leaves a run's result as it is, up to rounding: how images are read, how work is divided.
ASIDE: dict[str, Any] = {"json_schema_extra": {"decides the result": False}}
# Of a setting that came later: at its default it is not recorded, so that folders of earlier versions are found again.
WHERE_SET: dict[str, Any] = {"json_schema_extra": {"decides the result": "where it is set"}}


def names_of(registry: Registry, *more: str) -> Any:
    """The type of a setting that names one of a registry's files, or one of `more`."""
    return Literal[(*more, *registry.names)]


def group_of(kind: Any) -> type[BaseModel] | None:
    """The group of settings that a field contains (also optional, or in a dict); None for other fields."""
    parts = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and not get_args(part)]
    return next((part for part in parts if issubclass(part, BaseModel)), None)


def at_least(least: int, most: int = MOST) -> Callable[[str], int]:
    """Reads an option that is a whole number from `least` to `most`."""

    def number(text: str) -> int:
        try:
            value = int(text[:DIGITS])
        except ValueError:
            told = f"{shortened(text, DIGITS)!r} is not a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(told) from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        if value > most or len(text) > DIGITS:
            raise argparse.ArgumentTypeError(f"{shortened(value)} is more than {most}")
        return value

    return number


def number_from(least: float, most: float = 1e9) -> Callable[[str], float]:
    """Reads an option that is a number from `least` to `most`."""

    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value:g} is not a number from {least:g} to {most:g}")
        return value

    number.__name__ = "float"  # "invalid float value" is what argparse says of anything else
    return number


class Parser(argparse.ArgumentParser):
    """Parser of a command's options, without abbreviations. Mistakes raise a one-line UserError."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **(named | {"allow_abbrev": False}))
        self.add_argument("-v", "--verbose", action=Verbose, help="print more details, such as how images are prepared")

    def format_help(self) -> str:
        """As argparse writes it, with named groups first and what every command has last."""
        last = {"--help", "--verbose"}
        self._optionals._group_actions.sort(key=lambda action: not last.isdisjoint(action.option_strings))
        self._action_groups.sort(key=lambda group: group is self._optionals)
        self._actions = [action for group in self._action_groups for action in group._group_actions]
        return super().format_help()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but reports misspelt options first, with the nearest known one."""
        for word in sys.argv[1:] if args is None else args:
            option, known = word.partition("=")[0], self._option_string_actions
            if option.startswith("--") and option not in known:
                raise UserError(option, joined(f"no such option{nearest(option, known)}", "--help lists them all"))
        return super().parse_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            close = nearest(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{close}") from None

    def error(self, message: str) -> NoReturn:
        """Raises UserError: `argument --steps: 0 is less than 1` names --steps, other errors the program."""
        option, colon, text = message.removeprefix("argument ").partition(": ")
        if colon and option.startswith("-"):
            raise UserError(option, re.sub("^invalid float value: (.*)", r"\1 is not a number", text))
        extra = message.removeprefix("unrecognized arguments: ")
        if extra != message:
            option = nearest(f"--{extra.split()[0]}", self._option_string_actions)
            message = f"{shortened(extra)!r} does not belong to any option{option}"
        raise UserError(self.prog, joined(message, "--help lists all options"))


class Settings(BaseModel):
    """Base of all settings: frozen, typed strictly, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def decisive(self, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
        """The settings that decide a run's result, JSON-able: without those marked with `ASIDE`, those marked with
        `WHERE_SET` that are at their default, and `leave_out`."""
        dumped = self.model_dump(mode="json")
        kept = {}
        for key, field in type(self).model_fields.items():
            value, mark = getattr(self, key), field.json_schema_extra
            unset = mark == WHERE_SET["json_schema_extra"] and value == field.default
            if not unset and mark != ASIDE["json_schema_extra"] and key not in leave_out:
                kept[key] = value.decisive() if isinstance(value, Settings) else dumped[key]
        return kept
