"""The transformer blocks of a tower and the MLP of each, found by structure and proved by a probe.

D embedding width, H hidden width, B images, T tokens.
"""

import copy
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.towers.mlps.inputs import Inputs, inputs_of, random_like
from amp.towers.mlps.slots import MlpSlot

# What a probe has proved in this process; of a tower of 8 billion parameters it takes seconds.
_proved: set[tuple[object, ...]] = set()


def find_blocks(visual: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks of a plain vision transformer, by path, first to last: its one list of layers with MLPs.

    Raises:
        UserError: no such list, or several, as hierarchical networks (Swin, ConvNeXt, PVT) have.
    """
    lists: list[dict[str, nn.Module]] = []
    for path, module in visual.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            layers = {f"{path}.{name}".lstrip("."): layer for name, layer in module.named_children()}
            kinds = {type(layer) for layer in layers.values()}
            if len(kinds) == 1 and all(_has_mlp(layer) for layer in layers.values()):
                lists.append(layers)
    # A list inside a layer of another (a Sequential MLP, a decoupled head) is part of that layer.
    outer = [a for a in lists if not any(next(iter(a)).startswith(f"{layer}.") for b in lists for layer in b)]
    if len(outer) != 1:
        found = ", ".join(f"{next(iter(layers)).rpartition('.')[0]} ({len(layers)})" for layers in outer) or "none"
        raise UserError(
            "model.name",
            f"{type(visual).__name__}: expected one list of transformer blocks, found {found}; "
            "plain vision transformers can be pruned, hierarchical networks cannot",
        )
    return outer[0]


def _has_mlp(layer: nn.Module) -> bool:
    return sum(isinstance(module, nn.Linear) for module in layer.modules()) >= 2


def find_slots(blocks: Mapping[str, nn.Module], run: Callable[[], object] | None = None) -> tuple[MlpSlot, ...]:
    """The one MLP of every block, by structure, its layout proved by a probe.

    Args:
        blocks: the tower's transformer blocks by path, first to last.
        run: runs the tower once. An MLP split over children of its block is proved by what the block does with the
            inputs that it gets then; without `run`, with one (B, T, D) tensor.
    Raises:
        UserError: a block holds no MLP that can be pruned, or more than one.
    """
    slots = []
    proved_here: set[tuple[object, ...]] = set()
    inputs = cache(lambda: inputs_of(blocks, run) if run else {})
    for name, block in blocks.items():
        found = [(slot, m) for m in block.modules() if (slot := _match(name, m)) is not None]
        found = [
            (slot, m)
            for slot, m in found
            if (own := _signature(slot, m)) in proved_here
            or own in _proved
            or _probe(slot, m, inputs().get(name) if m is block else None)
        ]
        if len(found) != 1:
            raise UserError(
                "model.name",
                f"block {name!r} ({type(block).__name__}) holds {len(found)} prunable MLPs, "
                "expected one: Linear D->H (or two, or D->2H), an optional norm of width H, Linear H->D",
            )
        slot, module = found[0]
        proved_here.add(_signature(slot, module))
        if module is not block:  # What a block does hangs on the inputs that its own tower gives it.
            _proved.add(_signature(slot, module))
        slots.append(slot)
    return tuple(slots)


def _signature(slot: MlpSlot, module: nn.Module) -> tuple[object, ...]:
    """What tells MLPs apart: every child with its sizes, by `repr`, and the functions that a module holds besides."""
    functions = tuple(
        (path, key, getattr(value, "__qualname__", repr(value)))
        for path, child in module.named_modules()
        for key, value in vars(child).items()
        if callable(value) and not isinstance(value, nn.Module)
    )
    return type(module), repr(module), slot.layout, functions


def _match(name: str, module: nn.Module) -> MlpSlot | None:
    linears = _linears(module)
    if len(linears) not in (2, 3):
        return None
    *ins, out = linears
    width, hidden = out.out_features, out.in_features
    rows = {linear.out_features for linear in ins}
    packed = len(ins) == 1 and rows == {2 * hidden}
    if any(linear.in_features != width for linear in ins) or not (packed or rows == {hidden}):
        return None
    inside = list(module.modules())
    between = inside[inside.index(ins[-1]) + 1 : inside.index(out)]
    norms = [m for m in between if tuple(getattr(getattr(m, "weight", None), "shape", ())) == (hidden,)]
    return MlpSlot(name, tuple(ins), norms[0] if norms else None, out, packed, module)


def _linears(module: nn.Module) -> list[nn.Linear]:
    """Its own Linears; of a module without any, those of children that hold one each, D -> D (an attention's) aside."""
    own = [child for child in module.children() if isinstance(child, nn.Linear)]
    held = [[m for m in child.modules() if isinstance(m, nn.Linear)] for child in module.children()]
    return own or [one[0] for one in held if len(one) == 1 and one[0].in_features != one[0].out_features]


@torch.no_grad()
def _probe(slot: MlpSlot, module: nn.Module, inputs: Inputs | None) -> bool:
    """Whether moving one row of an in-projection moves that one column, and no other, of the activation."""
    trial = copy.deepcopy(module).to_empty(device="cpu").float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in trial.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 1) ** 0.5)
    for buffer in trial.buffers():
        buffer.zero_()
    twin = _match(slot.name, trial)
    assert twin is not None
    watched = twin.norm if twin.norm is not None else twin.out_projection
    seen: list[Tensor] = []
    watched.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    args, kwargs = inputs or ((torch.empty(1, 4, twin.out_projection.out_features),), {})
    # Many tokens, lest a rectifier silences the neuron on all of them.
    args, kwargs = (random_like(own, generator, tokens=64) for own in (args, kwargs))
    row = twin.hidden_width // 2
    rows = [(linear, r) for linear in twin.in_projections for r in ([row, row + twin.hidden_width][: 1 + twin.packed])]
    try:
        trial(*args, **kwargs)
        for linear, r in rows:
            before = linear.weight[r].clone()
            linear.weight[r] += 1.0
            trial(*args, **kwargs)
            linear.weight[r] = before
    except Exception:
        return False  # Not a module of such inputs, so not an MLP.
    moved = [((now - seen[0]).abs().amax(dim=(0, 1)) > 0).nonzero().flatten().tolist() for now in seen[1:]]
    return len(moved) == len(rows) and all(columns == [row] for columns in moved)
