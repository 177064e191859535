"""What of a block is pruned: a `Slot`, whose units enter its out-projection; `MlpSlot`, whose units are neurons.

H hidden width, K kept neurons, U units, D embedding width, T tokens.

Neuron j of an MLP is row j (packed gate: also row j + H) of every in-projection, element j of the hidden
norm, and column j of the out-projection. The out-projection's bias has width D and stays.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from amp.errors import UserError


class Slot(Protocol):
    """A part of a block that ends in an out-projection, of whose inputs each unit has its own: a neuron, or a head."""

    @property
    def name(self) -> str:
        """Path of the block in its tower, for messages."""

    @property
    def out_projection(self) -> nn.Linear:
        """H -> D."""

    @property
    def hidden_width(self) -> int:
        """H."""

    @property
    def num_units(self) -> int:
        """U."""

    @property
    def linears(self) -> list[nn.Linear]:
        """Those of which every unit has its share."""

    @property
    def shared(self) -> list[nn.Parameter]:
        """All parameters of which every unit has its share."""

    def inputs_of(self, units_K: Tensor) -> Tensor:
        """The out-projection's inputs that are these units', in their order."""

    def keep(self, indices_K: Tensor) -> None:
        """Slices to the given units, in the given order: int64, distinct, each in [0, num_units)."""

    def narrowed(self, indices_K: Tensor) -> AbstractContextManager[None]:
        """Sliced within the block of code, whole again after it."""


@dataclass(frozen=True, eq=False)
class MlpSlot:
    """One prunable MLP.

    Attributes:
        name: path of the block in its tower, for messages.
        in_projections: Linear D -> H, one (plain), two (split gate), or one D -> 2H (packed gate).
        norm: normalisation over the H neurons, or None.
        out_projection: Linear H -> D; its input is the activation that scores are taken of.
        packed: whether the one in-projection holds gate and value rows (2H).
        module: holds all of them; where an MLP is spread over two children of its block, the block.
    """

    name: str
    in_projections: tuple[nn.Linear, ...]
    norm: nn.Module | None
    out_projection: nn.Linear
    packed: bool
    module: nn.Module

    @property
    def hidden_width(self) -> int:
        return self.out_projection.in_features

    @property
    def num_units(self) -> int:
        return self.hidden_width

    @property
    def linears(self) -> list[nn.Linear]:
        return [*self.in_projections, self.out_projection]

    @property
    def shared(self) -> list[nn.Parameter]:
        own = (p for module in self.modules for p in module.parameters(recurse=False))
        return [parameter for parameter in own if parameter is not self.out_projection.bias]

    @property
    def modules(self) -> list[nn.Module]:
        """All that a slice changes."""
        return [*self.in_projections, self.out_projection, *([self.norm] if self.norm is not None else [])]

    @property
    def layout(self) -> str:
        gate = "packed gate" if self.packed else "split gate" if len(self.in_projections) == 2 else "plain"
        return gate + (" + norm" if self.norm is not None else "")

    def run(self, tokens_ND: Tensor) -> Tensor:
        """(N, D) what the out-projection gives for tokens that enter the MLP, with its graph."""
        before = [child for child in self.module.children() if self.in_projections[0] in list(child.modules())]
        if before and not isinstance(before[0], nn.Linear) and self.out_projection not in list(before[0].modules()):
            output_1ND: Tensor = self.out_projection(before[0](tokens_ND[None]))  # one MLP over two children of a block
            return output_1ND[0]
        seen: list[Tensor] = []
        handle = self.out_projection.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            self.module(tokens_ND[None])
        finally:
            handle.remove()
        return seen[0][0]

    def twin(self, dtype: torch.dtype) -> "MlpSlot":
        """A copy of the MLP in another dtype."""
        paths = {id(module): path for path, module in self.module.named_modules()}
        module = copy.deepcopy(self.module).to(dtype)

        def own(of: Any) -> Any:
            return module.get_submodule(paths[id(of)])

        norm = None if self.norm is None else own(self.norm)
        ins = tuple(own(linear) for linear in self.in_projections)
        return replace(self, in_projections=ins, norm=norm, out_projection=own(self.out_projection), module=module)

    def inputs_of(self, units_K: Tensor) -> Tensor:
        """The same: each neuron is one input."""
        return units_K

    @torch.no_grad()
    def keep(self, indices_K: Tensor) -> None:
        """Slices the MLP to the given neurons, in the given order.

        Args:
            indices_K: int64, distinct, each in [0, hidden_width).
        """
        width = self.hidden_width
        rows = torch.cat([indices_K, indices_K + width]) if self.packed else indices_K
        for linear in self.in_projections:
            slice_tensor(linear, "weight", 0, rows)
            slice_tensor(linear, "bias", 0, rows)
            linear.out_features = len(rows)
        norm: Any = self.norm
        if norm is not None:
            slice_tensor(norm, "weight", 0, indices_K)
            slice_tensor(norm, "bias", 0, indices_K)
            if hasattr(norm, "normalized_shape"):
                norm.normalized_shape = (len(indices_K),)
        slice_tensor(self.out_projection, "weight", 1, indices_K)
        self.out_projection.in_features = len(indices_K)

    @contextmanager
    def narrowed(self, indices_K: Tensor) -> Iterator[None]:
        """The sliced MLP inside the block, the whole one again after it."""
        with left_as_they_are(self.modules):
            self.keep(indices_K)
            yield


@contextmanager
def left_as_they_are(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules that may be sliced within the block of code; their own tensors and numbers are as before after it."""
    before = [
        {k: v for k, v in vars(module).items() if isinstance(v, int | tuple)}
        | dict(module.named_parameters(recurse=False))
        | dict(module.named_buffers(recurse=False))
        for module in modules
    ]
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            for key, value in own.items():
                setattr(module, key, value)


def slice_tensor(module: nn.Module, key: str, dim: int, indices: Tensor) -> None:
    """Of a parameter or a buffer, where the module has it."""
    tensor = getattr(module, key, None)
    if tensor is not None:
        sliced = tensor.index_select(dim, indices.to(tensor.device))
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(module, key, nn.Parameter(sliced, requires_grad=tensor.requires_grad) if is_parameter else sliced)


def check_scores(slots: Sequence[Slot], scores: Sequence[Tensor]) -> None:
    """Raises UserError unless there is one finite number (U,) for every unit of every slot."""
    if len(scores) != len(slots):
        raise UserError("scores", f"of {len(scores)} blocks, but the tower has {len(slots)}")
    for block, (slot, score_U) in enumerate(zip(slots, scores, strict=True)):
        if score_U.shape != (slot.num_units,):
            shape = " x ".join(map(str, score_U.shape))
            raise UserError("scores", f"of shape {shape} for block {block}, which has {slot.num_units} neurons")
        if not score_U.isfinite().all():
            raise UserError("scores", f"of block {block} are not all finite")
