"""What the two branches of a transformer block add to its hidden states, found by a probe: attention, then the MLP.

    mid = x + gain_1 * attention(x),  out = mid + gain_2 * mlp(mid)

with the gains of LayerScale, or 1. A branch ends in a Linear, its out-projection. Its output is moved a little, and how
the hidden states answer tells its gain, whatever the library calls it.

B images, T tokens, D width of the tower, E width of what enters an out-projection.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.towers.base import Tower
from amp.towers.mlps.inputs import first_input
from amp.towers.mlps.slots import MlpSlot

EXACT = 1e-3  # of a gain, by which tokens and probes may differ


class _SeenError(Exception):
    """What was wanted of a run is there."""


@dataclass(frozen=True, eq=False)
class BlockCall:
    """A block, and what it is handed beside its hidden states, which is the same for all images of a tower.

    Args:
        rest, named: all others of the call's arguments.
        name: by which the hidden states go; None: they come first.
    """

    block: nn.Module
    rest: tuple[Any, ...]
    named: Mapping[str, Any]
    name: str | None = None

    @classmethod
    def of(cls, block: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Self:
        """As a hook sees it; the hidden states are not kept."""
        if inputs:
            return cls(block, inputs[1:], named)
        first, *others = named
        return cls(block, (), {key: named[key] for key in others}, first)

    def __call__(self, x_BTD: Tensor) -> Tensor:
        """Hidden states (B, T, D) -> those that the block hands on."""
        if self.name is None:
            output = self.block(x_BTD, *self.rest, **self.named)
        else:
            output = self.block(**{self.name: x_BTD}, **self.named)
        return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True, eq=False)
class Branch:
    """The out-projection of a branch.

    Attributes:
        linear: E -> D.
        gain_D: fp64, by which the block multiplies its output before it adds it.
        functional: the nn.MultiheadAttention that applies `linear` without calling it; None: `linear` is called.
    """

    linear: nn.Linear
    gain_D: Tensor
    functional: nn.MultiheadAttention | None = None

    def entering(self, run: Callable[[], object]) -> Tensor:
        """(B, T, E) what enters the out-projection while `run` runs; the run ends there."""
        seen: list[Tensor] = []

        def see(tensor: Tensor) -> None:
            seen.append(tensor.detach())
            raise _SeenError

        if self.functional is None:
            handle = self.linear.register_forward_pre_hook(lambda module, inputs: see(inputs[0]))
            changed: AbstractContextManager[object] = nullcontext()
        else:
            handle = self.functional.register_forward_hook(lambda module, inputs, output: see(output[0]))
            changed = _handing_on(self.linear)
        try:
            with changed:
                run()
        except _SeenError:
            pass
        finally:
            handle.remove()
        (entering_BTE,) = seen
        batch_first = self.functional is None or self.functional.batch_first
        return entering_BTE if batch_first else entering_BTE.transpose(0, 1)


@torch.no_grad()
def block_calls(
    tower: Tower, images_BCSS: Tensor, entering: Callable[[Tensor], object] = lambda x_BTD: None
) -> list[BlockCall]:
    """The tower's blocks as they are called for these images.

    Args:
        entering: is told the hidden states (B, T, D) that enter each.

    Raises:
        UserError: a block is not handed what the one before it hands on.
    """
    calls: list[BlockCall] = []
    handed: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        first_BTD = first_input(inputs, named)
        if handed and not torch.equal(handed[-1], first_BTD):
            name = type(tower.visual).__name__
            text = f"the blocks of a {name} are no chain, so that it cannot be refitted as a whole; ridge refits each"
            raise UserError("prune.compensation", text)
        calls.append(BlockCall.of(module, inputs, named))
        entering(first_BTD)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        handed[:] = [output[0] if isinstance(output, tuple) else output]

    with ExitStack() as hooks:
        for block in tower.blocks.values():
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(after).remove)
        tower.feature(images_BCSS)
    return calls


@torch.no_grad()
def entering_blocks(tower: Tower, images_BCSS: Tensor) -> Tensor:
    """(B, T, D) the hidden states of these images that enter the first block; no block is run."""
    seen: list[Tensor] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(first_input(inputs, named))
        raise _SeenError

    handle = next(iter(tower.blocks.values())).register_forward_pre_hook(see, with_kwargs=True)
    try:
        tower.feature(images_BCSS)
    except _SeenError:
        pass
    finally:
        handle.remove()
    (x_BTD,) = seen
    return x_BTD


@torch.no_grad()
def find_branches(call: BlockCall, slot: MlpSlot, x_BTD: Tensor) -> tuple[Branch | None, Branch | None]:
    """The branches of a block: of attention and of the MLP; None where a branch does not add to the hidden states.

    Args:
        slot: the block's MLP. x_BTD: hidden states that enter it, of as many images as the call is for.
    """
    paths = {id(module): path for path, module in call.block.named_modules()}
    twin = copy.deepcopy(call.block).double()
    probe = BlockCall(twin, _in_fp64(call.rest), _in_fp64(call.named), call.name)
    x_BTD = x_BTD.double()
    out = twin.get_submodule(paths[id(slot.out_projection)])
    assert isinstance(out, nn.Linear)
    first = twin.get_submodule(paths[id(slot.in_projections[0])])
    assert isinstance(first, nn.Linear)
    twin_slot = replace(slot, in_projections=(first,), out_projection=out)
    mlp_gain_D = _gain(lambda: probe(x_BTD), out)
    if mlp_gain_D is None:
        return None, None
    mlp = Branch(slot.out_projection, mlp_gain_D)
    own = {id(module) for module in slot.modules}
    for path, linear in call.block.named_modules():
        if not isinstance(linear, nn.Linear) or id(linear) in own or linear.out_features != x_BTD.shape[-1]:
            continue
        twin_linear = twin.get_submodule(path)
        assert isinstance(twin_linear, nn.Linear)
        gain_D = _gain(lambda: run_mlp(probe, x_BTD, Branch(out, mlp_gain_D), twin_slot).mid_BTD, twin_linear)
        if gain_D is None:
            continue
        parent = call.block.get_submodule(path.rpartition(".")[0])
        functional = parent if isinstance(parent, nn.MultiheadAttention) else None
        return Branch(linear, gain_D, functional), mlp
    return None, mlp


@dataclass(frozen=True, eq=False)
class MlpRun:
    """What one run of a block shows of its MLP.

    Attributes:
        tokens_BTD: what enters the MLP.
        entering_BTE: what enters its out-projection.
        mid_BTD, out_BTD: hidden states before and after the branch.
    """

    tokens_BTD: Tensor
    entering_BTE: Tensor
    mid_BTD: Tensor
    out_BTD: Tensor


def run_mlp(call: BlockCall, x_BTD: Tensor, mlp: Branch, slot: MlpSlot) -> MlpRun:
    """Runs a block on hidden states (B, T, D)."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = inputs[0], output

    with ExitStack() as hooks:
        for linear in (slot.in_projections[0], mlp.linear):
            hooks.callback(linear.register_forward_hook(see).remove)
        out_BTD = call(x_BTD)
    tokens, _ = seen[slot.in_projections[0]]
    entering, output = seen[mlp.linear]
    added_BTD = (mlp.gain_D * output).view_as(out_BTD)
    return MlpRun(tokens, entering, (out_BTD - added_BTD).to(out_BTD.dtype), out_BTD)


def _gain(run: Callable[[], Tensor], linear: nn.Linear) -> Tensor | None:
    """(D,) which share of a move of a Linear's output is in what `run` gives; None where channels or tokens mix."""
    plain_BTD = run()
    generator = torch.Generator().manual_seed(0)
    gains: list[Tensor] = []
    for _ in range(2):
        signs_D = torch.randint(0, 2, plain_BTD.shape[-1:], generator=generator).to(plain_BTD) * 2 - 1
        shift_D = signs_D * plain_BTD.square().mean().sqrt().clamp(min=1e-3)
        with _shifted(linear, shift_D):
            gains.append((run() - plain_BTD) / shift_D)
    both = torch.stack(gains).flatten(0, -2)
    gain_D = both.mean(0)
    alike = bool((both - gain_D).abs().max() <= EXACT * gain_D.abs().max())
    return gain_D if alike and bool(gain_D.any()) else None


@contextmanager
def _shifted(linear: nn.Linear, shift_D: Tensor) -> Iterator[None]:
    """The output of a Linear, moved by the same at every token; its bias is moved, where it has one."""
    if linear.bias is None:
        handle = linear.register_forward_hook(lambda module, inputs, output: output + shift_D)
        try:
            yield
        finally:
            handle.remove()
        return
    bias = linear.bias
    linear.bias = nn.Parameter(bias + shift_D, requires_grad=False)
    try:
        yield
    finally:
        linear.bias = bias


@contextmanager
def _handing_on(linear: nn.Linear) -> Iterator[None]:
    """A Linear that gives what enters it."""
    weight, bias = linear.weight, linear.bias
    linear.weight = nn.Parameter(torch.eye(len(weight), device=weight.device, dtype=weight.dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(torch.zeros_like(bias), requires_grad=False)
    try:
        yield
    finally:
        linear.weight, linear.bias = weight, bias


def _in_fp64(value: Any) -> Any:
    """Tensors of floating point in fp64, wherever they stand in tuples and dictionaries."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _in_fp64(one) for key, one in value.items()}
    return type(value)(map(_in_fp64, value)) if type(value) in (tuple, list) else value
