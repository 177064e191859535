"""The one way to a size: what a tower of given widths has of the dense one's, and the widths that meet a share of it.

A size is parameters or FLOPs, counted, or seconds, measured on the device at hand. `relative` says what widths have of
it, `grid` which widths there are, `units` which of them meet it at the least loss, `timed` how seconds are met.
"""

from amp.pruning.size.grid import Grid, Widths
from amp.pruning.size.relative import (
    CLOSE,
    UNITS,
    RelativeSize,
    counted_size,
    of_neurons,
    out_of_reach,
    params_of_widths,
    sizes_of,
)
from amp.pruning.size.timed import TimedSize, check_counted, meet, relative_size
from amp.pruning.size.units import check_reach, meet_size, say_if_far, settle, stretched

__all__ = [
    "CLOSE",
    "UNITS",
    "Grid",
    "RelativeSize",
    "TimedSize",
    "Widths",
    "check_counted",
    "check_reach",
    "counted_size",
    "meet",
    "meet_size",
    "of_neurons",
    "out_of_reach",
    "params_of_widths",
    "relative_size",
    "say_if_far",
    "settle",
    "sizes_of",
    "stretched",
]
