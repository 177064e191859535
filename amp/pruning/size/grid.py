"""Which widths the blocks of a tower may have, and how many heads."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Self

from amp.settings.prune import SearchSettings
from amp.towers import Tower, in_order

Widths = list[int]


class Grid:
    """Multiples of one number that are no smaller than a bound, and the whole block.

    Args:
        dense: widths of the dense tower, one a block.
        settings: `width_multiple`, `min_width` and `blocks` of them; other blocks keep all.

    Attributes:
        multiple: of which every width is one, except a whole block's.
        levels: the widths of every block, ascending.
    """

    def __init__(self, dense: Sequence[int], settings: SearchSettings) -> None:
        self.multiple = settings.multiple_in(max(dense))
        least = math.ceil(settings.min_width / self.multiple) * self.multiple
        free = range(len(dense)) if settings.blocks is None else settings.blocks
        self.levels = [
            [*range(least if block in free else width, width, self.multiple), width]
            for block, width in enumerate(dense)
        ]

    @classmethod
    def of(cls, tower: Tower, settings: SearchSettings) -> Self:
        """Of a dense tower's `units`: of its MLPs, and any number of heads from one on."""
        own = cls(tower.widths, settings)
        own.levels = in_order(own.levels, [[*range(1, number + 1)] for number in tower.num_heads])
        return own

    @property
    def dense(self) -> Widths:
        """The largest network."""
        return [own[-1] for own in self.levels]

    @property
    def least(self) -> Widths:
        """The smallest network."""
        return [own[0] for own in self.levels]

    def within(self, wanted: Sequence[float]) -> list[float]:
        """The numbers wanted, raised to the least width and lowered to the dense one."""
        return [min(max(width, own[0]), own[-1]) for width, own in zip(wanted, self.levels, strict=True)]

    def around(self, wanted: Sequence[float]) -> tuple[Widths, Widths]:
        """The widths next above and next below those wanted; where one is wanted that there is, both are it."""
        each = list(zip(self.within(wanted), self.levels, strict=True))
        high = [own[bisect_left(own, width)] for width, own in each]
        return high, [own[bisect_right(own, width) - 1] for width, own in each]

    def nearest(self, wanted: Sequence[float]) -> Widths:
        """The widths closest to those wanted; the wider where two are as close."""
        wide, narrow = self.around(wanted)
        each = zip(self.within(wanted), wide, narrow, strict=True)
        return [high if high - width <= width - low else low for width, high, low in each]
