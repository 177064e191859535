"""The attention of every block, found by structure, and a proof that its class can hold fewer heads.

U heads, E = U * head width, D width of the tower.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from amp.errors import UserError
from amp.run.console import say
from amp.towers.base import Tower
from amp.towers.copies import on_meta
from amp.towers.heads.slots import HeadSlot, Part
from amp.towers.mlps.inputs import Inputs, inputs_of, random_like

# Names by which attentions know how many heads they have, and how many inputs their out-projection has.
HEADS = ("num_heads", "num_attention_heads", "num_kv_heads", "num_key_value_heads")
INPUTS = ("attn_dim", "kv_dim", "all_head_size", "all_head_dim", "inner_dim")
EXACT = 1e-5  # of the largest output: some modules take the softmax in fp32

# What a probe has proved in this process.
_proved: set[tuple[object, ...]] = set()


def with_attention(tower: Tower, attention: str, told: bool = False) -> Tower:
    """The same tower, with what `PruneConfig.attention` says among what can be removed.

    Args:
        told: whether it was said before why the heads stay.
    Raises:
        UserError: heads are asked for, not just where they can be had, and `with_heads` refuses them.
    """
    if attention == "none":
        return tower
    found, why = _provable(tower)
    if why is None:
        return replace(tower, heads=found)
    if attention != "auto":
        raise UserError("prune.attention", f"heads: {why}; use none")
    if not told:
        say(f"note: no attention heads are removed, only neurons: {why}")
    return tower


def with_heads(tower: Tower) -> Tower:
    """The same tower, whose attention heads can be removed.

    Raises:
        UserError: a block whose attention is not understood, or whose class cannot hold fewer heads.
    """
    return with_attention(tower, "heads")


def _provable(tower: Tower) -> tuple[tuple[HeadSlot, ...], str | None]:
    """The attention of every block; and of the first one that cannot hold fewer heads, which it is."""
    slots, wrong = _slots(tower.blocks)
    if wrong is None:
        twin = on_meta(tower)
        attentions = {slot.name: slot.module for slot in _slots(twin.blocks)[0]}
        try:
            inputs = inputs_of(attentions, lambda: twin.feature(twin.blank()))
        except ValueError:  # as many calls as attentions are wanted
            return (), f"some attention module of this {type(tower.visual).__name__} is not called exactly once"
        for slot in slots:
            signature = _signature(slot, inputs[slot.name])
            if signature not in _proved and not _proves(slot, *inputs[slot.name]):
                wrong = slot.name
                break
            _proved.add(signature)
    if wrong is None:
        return slots, None
    block = tower.blocks[wrong]
    return (), f"{type(_attention(block) or block).__name__} (block {wrong!r}) does not support fewer heads"


def _slots(blocks: Mapping[str, nn.Module]) -> tuple[tuple[HeadSlot, ...], str | None]:
    """The attentions up to the first block where none is understood, and that block's name."""
    found: list[HeadSlot] = []
    for name, block in blocks.items():
        attention = _attention(block)
        slot = None if attention is None else _match(name, attention)
        if slot is None:
            return tuple(found), name
        found.append(slot)
    return tuple(found), None


def _attention(block: nn.Module) -> nn.Module | None:
    """The one module of a block that says how many heads it has."""
    found = [module for module in block.modules() if _own_numbers(module, HEADS)]
    return found[0] if len(found) == 1 else None


def _own_numbers(module: nn.Module, names: tuple[str, ...]) -> dict[str, int]:
    return {name: vars(module)[name] for name in names if type(vars(module).get(name)) is int}


def _match(name: str, attention: nn.Module) -> HeadSlot | None:
    counts = _own_numbers(attention, HEADS)
    linears = {path: module for path, module in attention.named_modules() if isinstance(module, nn.Linear)}
    if len(linears) < 2 or len(set(counts.values())) != 1:
        return None
    (heads,) = set(counts.values())
    *ins, (out, last) = linears.items()
    entering = last.in_features
    if heads < 1 or entering % heads:
        return None
    width = entering // heads
    parts = [Part(out, "weight", 1, 1, width)]
    for path, linear in ins:
        groups, rest = divmod(linear.out_features, entering)
        if rest or groups not in (1, 3):
            return None
        keys = ["weight"] if linear.bias is None else ["weight", "bias"]
        parts += [Part(path, key, 0, groups, width) for key in keys]
    tensors = {**dict(attention.named_parameters(recurse=False)), **dict(attention.named_buffers(recurse=False))}
    for key, tensor in tensors.items():
        if tensor.ndim == 1 and len(tensor) in (entering, 3 * entering):
            parts.append(Part("", key, 0, len(tensor) // entering, width))
        elif tensor.ndim == 2 and tensor.shape[1] == heads:
            parts.append(Part("", key, 1, 1, 1))
        elif tensor.ndim == 3 and tensor.shape[0] == heads:
            parts.append(Part("", key, 0, 1, 1))
    sizes = {key: size for key, size in _own_numbers(attention, INPUTS).items() if size == entering}
    numbers = (*((key, 1) for key in counts), *((key, width) for key in sizes))
    return HeadSlot(name, attention, out, tuple(parts), numbers, list(range(heads)))


def _signature(slot: HeadSlot, inputs: Inputs) -> tuple[object, ...]:
    """What tells attentions apart, and the shapes of what they are given."""
    shapes = tuple(tuple(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor))
    return type(slot.module), repr(slot.module), slot.num_units, slot.parts, shapes


@torch.no_grad()
def _proves(slot: HeadSlot, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Whether the attention without every other head gives what it gives with their outputs at zero, in fp64."""
    if slot.num_units == 1:
        return True
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(slot.module).to_empty(device="cpu").double().eval()
    for tensor in (*trial.parameters(), *trial.buffers()):
        values = torch.randn(tensor.shape, generator=generator) / max(tensor.shape[-1:] or (1,)) ** 0.5
        tensor.copy_(values if tensor.is_floating_point() else torch.zeros_like(values))
    twin = replace(slot, module=trial, held=list(slot.held))
    inputs, named = (random_like(own, generator, torch.float64) for own in (inputs, named))
    kept_K = torch.arange(1, slot.num_units, 2)
    zeros_E = torch.zeros(slot.hidden_width, dtype=torch.float64)
    mask_E = zeros_E.index_fill(0, twin.inputs_of(kept_K), 1.0)

    def run() -> Tensor:
        output = trial(*inputs, **named)
        return output[0] if isinstance(output, tuple) else output

    try:
        handle = twin.out_projection.register_forward_pre_hook(lambda module, entering: (entering[0] * mask_E,))
        zeroed = run()
        handle.remove()
        twin.keep(kept_K)
        sliced = run()
    except Exception:  # A class that was not written for it raises anything.
        return False
    return sliced.shape == zeroed.shape and bool((sliced - zeroed).abs().max() <= EXACT * zeroed.abs().max())
