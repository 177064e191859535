"""A branch of a block, by its out-projection, and what one run of the block shows of it.

B images, T tokens, D width of the tower, E width of what enters an out-projection.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amp.towers.mlps.slots import MlpSlot
from amp.towers.residual.calls import BlockCall, SeenError


@dataclass(frozen=True, eq=False)
class Branch:
    """The out-projection of a branch.

    Attributes:
        linear: E -> D.
        gain_D: fp64, by which the block multiplies its output before it adds it.
        functional: the nn.MultiheadAttention that applies `linear` without calling it; None: `linear` is called.
        norm: of the MLP: makes what enters it of x + attention(x); None where nothing is known to.
    """

    linear: nn.Linear
    gain_D: Tensor
    functional: nn.MultiheadAttention | None = None
    norm: nn.Module | None = None

    def added(self, x_BTD: Tensor, entering_BTE: Tensor) -> Tensor:
        """Hidden states (B, T, D), with what the branch adds for what enters the out-projection; in their dtype."""
        return (x_BTD + self.output(entering_BTE)).to(x_BTD.dtype)

    def output(self, entering_BTE: Tensor) -> Tensor:
        """(B, T, D) what the branch adds to the hidden states; fp32 or more."""
        linear, dtype = self.linear, torch.promote_types(entering_BTE.dtype, torch.float32)
        bias = None if linear.bias is None else linear.bias.to(dtype)
        output_BTD = nn.functional.linear(entering_BTE.to(dtype), linear.weight.to(dtype), bias)
        return self.gain_D.to(output_BTD) * output_BTD

    def entering(self, run: Callable[[], object]) -> Tensor:
        """(B, T, E) what enters the out-projection while `run` runs; the run ends there."""
        seen: list[Tensor] = []

        def see(tensor: Tensor) -> None:
            seen.append(tensor.detach())
            raise SeenError

        if self.functional is None:
            handle = self.linear.register_forward_pre_hook(lambda module, inputs: see(inputs[0]))
            changed: AbstractContextManager[object] = nullcontext()
        else:
            handle = self.functional.register_forward_hook(lambda module, inputs, output: see(output[0]))
            changed = _handing_on(self.linear)
        try:
            with changed:
                run()
        except SeenError:
            pass
        finally:
            handle.remove()
        (entering_BTE,) = seen
        batch_first = self.functional is None or self.functional.batch_first
        return entering_BTE if batch_first else entering_BTE.transpose(0, 1)


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
