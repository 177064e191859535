"""The tokens that one MLP is refitted on: all that the feature reads, and some of the others, of every image.

N tokens, B images, T tokens of an image, D width of the tower.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from amp.run.world import world

OTHERS = 32  # tokens of an image that are kept, beside those that the feature reads
LEFT_OUT = 16  # every so many-th image is left out of what is learned by steps, and says whether they have helped
READ_ROWS, OTHER_ROWS = 256, 768  # tokens of a step
AT_ONCE = 8192  # tokens


class Rows:
    """Tokens of one sort, (entering, asked): what enters the MLP, and what its branch is to add to the hidden states.

    All processes hold those of all, in one order, whatever their number.

    Args:
        at_a_step: how many of them a step of gradient descent sees.
        weight: of each token in a least squares.
    """

    def __init__(self, at_a_step: int, weight: float) -> None:
        self.at_a_step, self.weight = at_a_step, weight
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, entering_BTD: Tensor, asked_BTD: Tensor, batch: int) -> None:
        """Tokens of this process's images of a global batch."""
        entering_BTD, asked_BTD = (world().gather(own_BTD.float()) for own_BTD in (entering_BTD, asked_BTD))
        count, tokens, _ = entering_BTD.shape
        image_N = torch.arange(batch * count, (batch + 1) * count).repeat_interleave(tokens)
        self._parts.append((entering_BTD.flatten(0, 1), asked_BTD.flatten(0, 1), image_N))

    def _whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """Also the number of each token's image."""
        if len(self._parts) > 1:
            entering, asked, images = zip(*self._parts, strict=True)
            self._parts.clear()
            self._parts.append((torch.cat(entering), torch.cat(asked), torch.cat(images)))
        return self._parts[0]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def at(self, places_N: Tensor) -> tuple[Tensor, Tensor]:
        """Those at some places."""
        entering_ND, asked_ND, _ = self._whole()
        places_N = places_N.to(entering_ND.device)
        return entering_ND[places_N], asked_ND[places_N]

    def own(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of them, some at once."""
        whole = self._whole()[:2]
        own = [tokens_ND.tensor_split(world().size)[world().rank].split(AT_ONCE) for tokens_ND in whole]
        yield from zip(*own, strict=True)

    def learned_and_left_out(self) -> tuple[Tensor, Tensor]:
        """Places (N,) of the tokens of images that are learned from, and of those that are left out."""
        out_N = self._whole()[2] % LEFT_OUT == LEFT_OUT - 1
        return (~out_N).nonzero()[:, 0], out_N.nonzero()[:, 0]


def most_tokens(num_images: int, num_read: int, views: int) -> int:
    """Of one MLP, kept by an `MlpTokens`: of all views of so many images, of which the feature reads some tokens."""
    return num_images * views * (num_read + max(1, OTHERS // views))


class MlpTokens:
    """What is kept of the tokens that enter one MLP.

    Args:
        read: tokens that the feature reads, by their places in an image; all of them are kept.
        weight: of each of those in a least squares, where each of the others counts once.
        views: of an image, which share the others.
        seed: of the others, which are drawn.
    """

    def __init__(self, read: tuple[int, ...], weight: float, views: int, seed: int) -> None:
        self._read, self._most = list(read), max(1, OTHERS // views)
        self._generator = torch.Generator().manual_seed(seed)
        self._sorts = Rows(READ_ROWS, weight), Rows(OTHER_ROWS, 1.0)

    @property
    def sorts(self) -> list[Rows]:
        """Those that there are tokens of."""
        return [rows for rows in self._sorts if rows]

    def add(self, entering_BTD: Tensor, asked_BTD: Tensor, batch: int) -> None:
        """Of the images of a global batch, (B, T, D), or of views of them."""
        read, others = self._sorts
        places = [place for place in range(entering_BTD.shape[1]) if place not in self._read]
        drawn = torch.randperm(len(places), generator=self._generator)[: self._most].tolist()
        if drawn:
            others.weight = len(places) / len(drawn)
            chosen = [places[place] for place in drawn]
            others.add(entering_BTD[:, chosen], asked_BTD[:, chosen], batch)
        if self._read:
            read.add(entering_BTD[:, self._read], asked_BTD[:, self._read], batch)
