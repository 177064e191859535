"""Blocks that are computed once more in the backward pass, so that a graph keeps little of most images.

B images, C channels, S side in pixels.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# What takes long for the little that it leaves: attention, whose output is as wide as a block's input.
KEPT = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}").default
    for kind in (
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "flash_attention_for_cpu",
        "fused_attention_overrideable",
    )
}


def parts_of(images_BCSS: Tensor, micro_batch: int | None) -> list[Tensor]:
    """The batch in parts of `micro_batch` images, the first of which may be smaller; None: one part."""
    size = len(images_BCSS)
    rest = size % (micro_batch or size)
    first = [images_BCSS[:rest]] if rest else []
    return [*first, *images_BCSS[rest:].split(micro_batch or size)]


class Recomputing:
    """Runs blocks such that the graph keeps their inputs and what attention gives, and the rest is computed again.

    Attributes:
        later: whether what runs now will run once more.
        under_way: whether this is the second time.
    """

    def __init__(self) -> None:
        self.later = self.under_way = False

    @contextmanager
    def of(self, blocks: Collection[nn.Module]) -> Iterator[None]:
        """Within the block, of these modules."""
        self.later = True
        forwards = {block: block.__dict__.get("forward") for block in blocks}
        try:
            for block in forwards:
                # No module of ours draws random numbers: towers are in eval mode.
                block.forward = partial(
                    checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, context_fn=self._contexts
                )
            yield
        finally:
            self.later = False
            for block, own in forwards.items():
                block.__dict__.pop("forward", None)
                if own is not None:
                    block.forward = own

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        first, second = create_selective_checkpoint_contexts(_policy)
        return first, self._again(second)

    @contextmanager
    def _again(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        self.under_way = True
        try:
            with context:
                yield
        finally:
            self.under_way = False


def _policy(context: Any, operation: Callable[..., Any], *inputs: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
