"""`HeadSlot`: the attention of one transformer block; keeps a set of heads, in the library's own class.

U heads, E = U * head width, D width of the tower, K kept heads.

Head u of an attention is rows u * width ... (u + 1) * width - 1 of each in-projection (packed: of each of its three
parts), the same columns of the out-projection, and whatever else there is one of for each head. What tells heads apart
stays as it is: their width, norms of queries and keys, rotary positions. The out-projection's bias has width D and
stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from amp.towers.mlps.slots import left_as_they_are, slice_tensor


@dataclass(frozen=True)
class Part:
    """A tensor of which every head has its own part.

    Attributes:
        path, key: of the module in the attention, and of the tensor in it.
        dim: along which the parts lie.
        groups: how often all heads come there, one after another: 3 where queries, keys and values are packed.
        width: of a head's part in a group.
    """

    path: str
    key: str
    dim: int
    groups: int
    width: int


@dataclass(frozen=True, eq=False)
class HeadSlot:
    """One attention whose heads can be removed.

    Attributes:
        name: path of the block in its tower, for messages.
        module: the attention.
        out: path of the out-projection in it, a Linear E -> D.
        parts: all that a slice changes.
        numbers: names of the attention's own numbers, and what each head has of them: 1, or its width.
        held: the heads that it has, by their places in the dense model.
    """

    name: str
    module: nn.Module
    out: str
    parts: tuple[Part, ...]
    numbers: tuple[tuple[str, int], ...]
    held: list[int] = field(default_factory=list)

    @property
    def out_projection(self) -> nn.Linear:
        own = self.module.get_submodule(self.out)
        assert isinstance(own, nn.Linear)
        return own

    @property
    def hidden_width(self) -> int:
        return self.out_projection.in_features

    @property
    def num_units(self) -> int:
        return len(self.held)

    @property
    def head_width(self) -> int:
        """Inputs of the out-projection that are one head's."""
        return self.hidden_width // self.num_units

    @property
    def linears(self) -> list[nn.Linear]:
        own = dict.fromkeys(self.module.get_submodule(part.path) for part in self.parts)
        return [module for module in own if isinstance(module, nn.Linear)]

    @property
    def shared(self) -> list[nn.Parameter]:
        own = (getattr(self.module.get_submodule(part.path), part.key) for part in self.parts)
        return [tensor for tensor in own if isinstance(tensor, nn.Parameter)]

    def inputs_of(self, units_K: Tensor) -> Tensor:
        """As many of each head as it is wide."""
        return _spread(units_K, 1, self.num_units, self.head_width)

    @torch.no_grad()
    def keep(self, indices_K: Tensor) -> None:
        """Slices the attention to the given heads, in the given order.

        Args:
            indices_K: int64, distinct, each in [0, num_units); at least one.
        """
        for part in self.parts:
            module = self.module.get_submodule(part.path)
            rows = _spread(indices_K, part.groups, self.num_units, part.width)
            slice_tensor(module, part.key, part.dim, rows)
            if isinstance(module, nn.Linear) and part.key == "weight":
                setattr(module, ("out_features", "in_features")[part.dim], len(rows))
        for key, of_head in self.numbers:
            setattr(self.module, key, len(indices_K) * of_head)
        self.held[:] = [self.held[index] for index in indices_K.tolist()]

    @contextmanager
    def narrowed(self, indices_K: Tensor) -> Iterator[None]:
        """The sliced attention inside the block of code, the whole one again after it."""
        held = list(self.held)
        try:
            with left_as_they_are(list(self.module.modules())):
                self.keep(indices_K)
                yield
        finally:
            self.held[:] = held


def _spread(indices_K: Tensor, groups: int, heads: int, width: int) -> Tensor:
    """The places of heads' parts: group after group, in it head after head."""
    starts_G1 = torch.arange(groups, device=indices_K.device)[:, None] * heads
    inside_W = torch.arange(width, device=indices_K.device)
    return ((starts_G1 + indices_K)[..., None] * width + inside_W).flatten()
