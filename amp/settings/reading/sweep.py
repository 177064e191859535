"""The option `--sweep`: several pruned networks of one model, by size or by the allowed entropy increase."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from amp.errors import UserError, nearest
from amp.settings.base import number_from

OPTION = "--sweep"
SHARES = ("params", "flops", "latency")
THRESHOLD = "entropy_increase"
KINDS = (*SHARES, "throughput", THRESHOLD)
HELP = (
    f"prune to several sizes: one of {', '.join(KINDS)}, then its values, for example `params 0.8 0.6 0.4`; each size "
    f"gets a folder in the output folder, and a table and a picture compare them; values alone are those of {THRESHOLD}"
)


@dataclass(frozen=True)
class Sweep:
    """What several networks are asked for; empty where there is one.

    Attributes:
        targets: (key of `prune.target`, value) of each, the largest network first.
        thresholds: in nats, ascending.
    """

    targets: tuple[tuple[str, float], ...] = ()
    thresholds: tuple[float, ...] = ()


def parse_sweep(words: Sequence[str]) -> Sweep:
    """Reads the words after `--sweep`. Raises UserError."""
    if not words:
        return Sweep()
    kind, values = (words[0], words[1:]) if words[0] in KINDS else (THRESHOLD, words)
    if not values:
        raise UserError(OPTION, f"{kind}: give values, for example {'2 3' if kind == 'throughput' else '0.8 0.6 0.4'}")
    try:
        numbers = {number_from(0)(word) for word in values}
    except argparse.ArgumentTypeError as error:
        raise UserError(OPTION, str(error)) from None
    except ValueError:
        word = next(word for word in values if not _is_number(word))
        raise UserError(
            OPTION,
            f"{word!r} is neither a number nor one of {', '.join(KINDS)}{nearest(word, KINDS)}",
        ) from None
    if kind == THRESHOLD:
        return Sweep(thresholds=tuple(sorted(numbers)))
    if kind == "throughput" and (wrong := [number for number in numbers if number <= 1]):
        raise UserError(
            OPTION, f"throughput {wrong[0]:g}: must be above 1, as a multiple of the dense tower's, for example 1.5 2"
        )
    if kind in SHARES and (wrong := [number for number in numbers if not 0 < number < 1]):
        raise UserError(OPTION, f"{kind} {wrong[0]:g}: must be a share between 0 and 1, for example 0.8 0.6 0.4")
    largest_first = sorted(numbers, reverse=kind in SHARES)
    return Sweep(targets=tuple((kind, number) for number in largest_first))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
