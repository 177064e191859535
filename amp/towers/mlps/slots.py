"""`MlpSlot`: the MLP of one transformer block; reads its width, keeps a set of neurons.

H hidden width, K kept neurons, D embedding width, T tokens.

Neuron j of an MLP is row j (packed gate: also row j + H) of every in-projection, element j of the hidden
norm, and column j of the out-projection. The out-projection's bias has width D and stays.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from amp.errors import UserError


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

    @torch.no_grad()
    def keep(self, indices_K: Tensor) -> None:
        """Slices the MLP to the given neurons, in the given order.

        Args:
            indices_K: int64, distinct, each in [0, hidden_width).
        """
        width = self.hidden_width
        indices_K = indices_K.to(self.out_projection.weight.device)
        rows = torch.cat([indices_K, indices_K + width]) if self.packed else indices_K
        for linear in self.in_projections:
            _slice(linear, "weight", 0, rows)
            _slice(linear, "bias", 0, rows)
            linear.out_features = len(rows)
        norm: Any = self.norm
        if norm is not None:
            _slice(norm, "weight", 0, indices_K)
            _slice(norm, "bias", 0, indices_K)
            if hasattr(norm, "normalized_shape"):
                norm.normalized_shape = (len(indices_K),)
        _slice(self.out_projection, "weight", 1, indices_K)
        self.out_projection.in_features = len(indices_K)

    @contextmanager
    def narrowed(self, indices_K: Tensor) -> Iterator[None]:
        """The sliced MLP inside the block, the whole one again after it."""
        modules = self.modules
        parameters = [dict(m.named_parameters(recurse=False)) for m in modules]
        shapes = [
            {k: getattr(m, k) for k in ("in_features", "out_features", "normalized_shape") if hasattr(m, k)}
            for m in modules
        ]
        try:
            self.keep(indices_K)
            yield
        finally:
            for module, own, shape in zip(modules, parameters, shapes, strict=True):
                for key, value in (own | shape).items():
                    setattr(module, key, value)


def _slice(module: nn.Module, key: str, dim: int, indices: Tensor) -> None:
    parameter = getattr(module, key, None)
    if parameter is not None:
        sliced = parameter.index_select(dim, indices)
        setattr(module, key, nn.Parameter(sliced, requires_grad=parameter.requires_grad))


def check_scores(slots: Sequence[MlpSlot], scores: Sequence[Tensor]) -> None:
    """Raises UserError unless there is one finite number (H,) for every neuron of every MLP."""
    if len(scores) != len(slots):
        raise UserError("scores", f"of {len(scores)} blocks, the tower has {len(slots)}")
    for block, (slot, score_H) in enumerate(zip(slots, scores, strict=True)):
        width = slot.hidden_width
        if score_H.shape != (width,):
            shape = " x ".join(map(str, score_H.shape))
            raise UserError("scores", f"{shape} of block {block}, which has {width} neurons")
        if not score_H.isfinite().all():
            raise UserError("scores", f"one of block {block} is no finite number")
