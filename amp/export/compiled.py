"""Blocks of a tower compiled by torch.compile, one graph for all widths, which differ from block to block.

torch.compile takes sizes of parameters for constants, so that each width is a graph of its own, and after eight of
them (`recompile_limit`) every further block runs uncompiled, without a word. Here, widths are free sizes, and a block
that cannot be compiled is an error.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from amp.towers import Tower
from amp.towers.mlps.find_slots import find_blocks

Model = TypeVar("Model", bound=Tower | nn.Module)

# Sizes of parameters may change from one block to the next.
FREE_WIDTHS = {"force_parameter_static_shapes": False, "force_nn_module_property_static_shapes": False}
# Graphs of one block, as many as torch allows by itself: for its dtypes, gradients or none, batches of other sizes.
GRAPHS = 8


def compile_blocks(model: Model, dynamic: bool | None = None, fullgraph: bool = True, **options: Any) -> Model:
    """Compiles every transformer block of a vision tower in place; each block is compiled when it first runs.

    Parameters, names of the state dict, hooks and pickles stay the same; a copy (`copy.deepcopy`) is not compiled.

    Args:
        model: a Tower, or a model of timm, open_clip or transformers.
        dynamic: None: one graph serves blocks of all widths, unless their MLPs have a hidden norm, which needs a graph
            for each width. False: one graph for each width, which takes that many times as long to compile.
        fullgraph: whether a block that torch cannot compile as one graph is an error; False: it runs in pieces.
        options: options of torch.compile, such as `backend` or `mode`.
    Returns:
        `model`.
    Raises:
        UserError: the model has no list of transformer blocks.
    """
    found = model.blocks if isinstance(model, Tower) else find_blocks(_vision_tower(model))
    blocks: list[Any] = [*found.values()]
    limit = GRAPHS * (len(blocks) + 1)
    patch: dict[str, Any] = {"recompile_limit": limit, "accumulated_recompile_limit": max(256, 2 * limit)}
    if dynamic is not False:
        patch |= FREE_WIDTHS
    for block in blocks:
        compiled = torch.compile(block._call_impl, dynamic=dynamic, fullgraph=fullgraph, **options)
        block._compiled_call_impl = _under(patch, compiled, block)
    return model


def _vision_tower(model: Any) -> nn.Module:
    """The part of a dual encoder, or of a classifier around one, that reads images; another model as it is."""
    parts = (getattr(model, name, None) for name in ("visual", "vision_model"))
    return next((part for part in parts if isinstance(part, nn.Module)), model)


def _under(patch: dict[str, Any], compiled: Callable[..., Any], block: Any) -> Callable[..., Any]:
    """Calls `compiled` with a configuration of torch.compile that only this block has."""

    def call(*inputs: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():  # within torch.export, or a torch.compile of the whole model
            return block._call_impl(*inputs, **named)
        with torch._dynamo.config.patch(patch):
            return compiled(*inputs, **named)

    return call
