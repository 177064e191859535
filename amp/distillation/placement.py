"""Where a tower's work is done: compiled, recomputed in the backward pass, divided over the processes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from amp.export import compile_blocks
from amp.run.world import local_part, recompute_in_backward, world
from amp.settings.distill import OptimSettings
from amp.towers import TokenReadout, Tower


def place(tower: Tower, optim: OptimSettings) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The tower's readout on this process's device, as `optim` says, and its weights by their names in the tower.

    A tower whose parameters are all frozen is not recomputed, since nothing goes back through it.
    """
    owners = {
        f"{path}.{attribute}" if path else attribute: (owner, attribute)
        for path, owner in tower.visual.named_modules()
        for attribute, _ in owner.named_parameters(recurse=False)
    }
    blocks = list(tower.blocks.values())
    trained = any(parameter.requires_grad for parameter in tower.visual.parameters())
    readout = TokenReadout(tower)
    if optim.compile:
        compile_blocks(tower)
    if trained:
        recompute_in_backward(tower.visual, blocks[: num_recomputed(optim, len(blocks))])
    # The teacher's weights keep their dtypes, norms of fp32 among them.
    compute = torch.bfloat16 if trained and optim.precision == "bf16" else None
    units = [tower.visual.get_submodule(path) for path in tower.blocks]
    module = world().data_parallel(readout, optim.parallel, units, compute)
    return module, {name: getattr(owner, attribute) for name, (owner, attribute) in owners.items()}


def num_recomputed(optim: OptimSettings, num_blocks: int) -> int:
    """Blocks, from the first on, that are computed again in the backward pass.

    Never the last one: the backward pass begins there, while all it needs is still in memory.
    """
    wanted = optim.activation_checkpointing
    return num_blocks - 1 if wanted is True else min(int(wanted), num_blocks - 1)


def own_part(weight: nn.Parameter) -> nn.Parameter:
    """This process's shard of a weight as a parameter that shares its memory; the weight itself where it is whole."""
    part = local_part(weight)
    return part if isinstance(part, nn.Parameter) else nn.Parameter(part)


def as_placed(
    tower: Tower, readout: nn.Module, dtype: torch.dtype, autocast: Callable[[], AbstractContextManager[object]]
) -> Tower:
    """The tower as it can be asked where it is placed: feature and embedding by way of its readout, in `autocast`.

    Args:
        readout: of `place`. Under fsdp every process must ask equally often.
        dtype: of its weights.
    """

    def through(read: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def read_placed(images_BCHW: Tensor) -> Tensor:
            with autocast():
                output: Tensor = readout(images_BCHW, read)
            return output

        return read_placed

    embed = tower.encode_image and through(tower.encode_image)
    return replace(tower, dtype=dtype, feature=through(tower.feature), encode_image=embed)
