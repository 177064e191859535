"""Searches, a file each: how many batches decide on a probe, and whether the inputs of blocks are kept between probes.

A file holds `SEARCH`, a `Search`; its name is a word of `prune.search`. The rule that all of them answer (which width a
block gets) is in `amp.pruning.blocks` and `amp.pruning.bisection`.
"""

from amp.pruning.search._interface import Judge, Search, Series
from amp.registry import SEARCHES
from amp.settings.prune import SearchSettings

__all__ = ["Judge", "Search", "Series", "inputs_every", "search_of", "trial_of"]


def search_of(settings: SearchSettings) -> Search:
    """The one that `prune.search` names."""
    search: Search = SEARCHES.load(settings.search).SEARCH
    return search


def searches(settings: SearchSettings) -> bool:
    """Whether widths are tried on the network, block by block."""
    return settings.widths is None and settings.allocation == "search"


def inputs_every(settings: SearchSettings) -> int | None:
    """Of every how many blocks the inputs are kept; None: of none."""
    return settings.store_every if searches(settings) and search_of(settings).keeps_inputs else None


def trial_of(settings: SearchSettings, num_batches: int) -> tuple[SearchSettings, int]:
    """How a threshold is tried that may not be the last one: settings, and the number of batches to look at.

    A search that decides on few batches tries on its own; any other by racing on the first eighth of them.
    """
    if search_of(settings).few_batches:
        return settings, num_batches
    racing = {"search": "racing", "preset": "fast", "confidence": None, "tolerance": None}
    return settings.model_copy(update=racing), max(1, num_batches // 8)
