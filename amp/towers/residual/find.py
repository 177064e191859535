"""Finds the branches of a block by a probe.

B images, T tokens, D width of the tower.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amp.towers.mlps.slots import MlpSlot
from amp.towers.residual.branches import Branch, run_mlp
from amp.towers.residual.calls import BlockCall

EXACT = 1e-3  # of a gain, by which tokens and probes may differ


@torch.no_grad()
def find_branches(call: BlockCall, slot: MlpSlot, x_BTD: Tensor) -> tuple[Branch | None, Branch | None]:
    """The branches of a block: of attention and of the MLP; None where a branch does not add to the hidden states.

    Args:
        slot: the block's MLP. x_BTD: hidden states that enter it, of as many images as the call is for.
    """
    paths = {id(module): path for path, module in call.block.named_modules()}
    twin = _twin(call.block)
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
    mlp, twin_mlp = Branch(slot.out_projection, mlp_gain_D), Branch(out, mlp_gain_D)
    own = {id(module) for module in slot.modules}
    for path, linear in call.block.named_modules():
        if not isinstance(linear, nn.Linear) or id(linear) in own or linear.out_features != x_BTD.shape[-1]:
            continue
        twin_linear = twin.get_submodule(path)
        assert isinstance(twin_linear, nn.Linear)
        gain_D = _gain(lambda: run_mlp(probe, x_BTD, twin_mlp, twin_slot).mid_BTD, twin_linear)
        if gain_D is None:
            continue
        parent = path.rpartition(".")[0]
        attention = _branch(call.block.get_submodule(parent), linear, gain_D)
        twin_attention = _branch(twin.get_submodule(parent), twin_linear, gain_D)
        norm = _find_norm(probe, x_BTD, twin_attention, twin_mlp, twin_slot)
        return attention, mlp if norm is None else replace(mlp, norm=call.block.get_submodule(norm))
    return None, mlp


def _twin(block: nn.Module) -> nn.Module:
    """A copy in fp64. Norms that cast what they are given to fp32, as open_clip's do beside weights in bf16, are plain
    ones in it."""
    twin = copy.deepcopy(block).double()
    for path, norm in list(twin.named_modules()):
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None and _casts(norm):
            plain = nn.LayerNorm(norm.normalized_shape, norm.eps, device="meta")
            plain.weight, plain.bias = norm.weight, norm.bias
            twin.set_submodule(path, plain)
    return twin


def _casts(norm: nn.LayerNorm) -> bool:
    try:
        norm(norm.weight)
    except RuntimeError:
        return True
    return False


def _branch(parent: nn.Module, linear: nn.Linear, gain_D: Tensor) -> Branch:
    return Branch(linear, gain_D, parent if isinstance(parent, nn.MultiheadAttention) else None)


def _find_norm(probe: BlockCall, x_BTD: Tensor, attention: Branch, mlp: Branch, slot: MlpSlot) -> str | None:
    """Path of what makes the MLP's tokens of x + attention(x), and of nothing else."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def see(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if len(inputs) == 1 and isinstance(output, Tensor):
                seen[path] = inputs[0], output

        return record

    with ExitStack() as hooks:
        for path, module in probe.block.named_modules():
            hooks.callback(module.register_forward_hook(see(path)).remove)
        run = run_mlp(probe, x_BTD, mlp, slot)
    mid_BTD = attention.added(x_BTD, attention.entering(lambda: probe(x_BTD)))

    def alike(one: Tensor, other: Tensor) -> bool:
        return one.numel() == other.numel() and torch.allclose(
            one.double().reshape(other.shape), other, rtol=EXACT, atol=EXACT
        )

    if not alike(mid_BTD, run.mid_BTD):
        return None
    found = (p for p, (one, other) in seen.items() if alike(one, mid_BTD) and alike(other, run.tokens_BTD))
    return next(found, None)


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


def _in_fp64(value: Any) -> Any:
    """Tensors of floating point in fp64, wherever they stand in tuples and dictionaries."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _in_fp64(one) for key, one in value.items()}
    return type(value)(map(_in_fp64, value)) if type(value) in (tuple, list) else value
