"""How a student is trained: rates of every step, and the optimizer."""

import math
from collections.abc import Sequence

import optimi
import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.settings.distill import OptimSettings


def rates(step: int, optim: OptimSettings, batch_size: int, steps_per_epoch: int) -> tuple[float, float]:
    """(learning rate, weight decay) of a step, counted from 0 (AMP, arXiv 2603.08100, section 4).

    The rate climbs linearly from 0 to base_lr * batch_size / 256, which the last warm-up step has, then falls on a
    cosine towards min_lr; the decay follows a cosine from weight_decay to weight_decay_end over all steps.
    """
    peak = optim.base_lr * batch_size / 256
    warmup, total = optim.warmup_epochs * steps_per_epoch, optim.epochs * steps_per_epoch
    if optim.warmup_steps is not None:
        warmup = min(optim.warmup_steps, total - 1)
    if step < warmup:
        rate = peak * step / max(1, warmup - 1)
    else:
        rate = _cosine(peak, optim.min_lr, (step - warmup) / (total - warmup))
    return rate, _cosine(optim.weight_decay, optim.weight_decay_end, step / total)


def _cosine(start: float, end: float, share: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))


def check_division(optim: OptimSettings, batch_size: int, num_processes: int) -> None:
    """Raises UserError when a step cannot be divided as `optim` says."""
    if batch_size % (num_processes * optim.accumulate):
        raise UserError(
            "optim.accumulate",
            f"a batch of {batch_size} images does not divide into {optim.accumulate} micro-batches on each of "
            f"{num_processes} processes",
        )
    if optim.step_in_backward and num_processes > 1:
        raise UserError(
            "optim.step_in_backward",
            f"only allowed on one process: each of {num_processes} processes would step before the gradients are "
            "averaged, and their weights would drift apart",
        )


def make_optimizer(parameters: Sequence[nn.Parameter], optim: OptimSettings) -> torch.optim.Optimizer:
    """AdamW over all parameters alike; for pure_bf16 with Kahan-summed bf16 weights and moments.

    Its rates are 0 until they are set, as `rates` gives them. With `step_in_backward` it steps by itself.
    """
    if optim.precision != "pure_bf16":
        return torch.optim.AdamW(parameters, lr=0.0, betas=optim.betas, eps=1e-8, weight_decay=0.0, fused=True)
    own = {"betas": optim.betas, "eps": 1e-8, "weight_decay": 0.0, "gradient_release": optim.step_in_backward}
    optimizer = optimi.AdamW(parameters, lr=0.0, kahan_sum=True, **own)
    if optim.step_in_backward:
        optimi.prepare_for_gradient_release(nn.ParameterList(parameters), optimizer)
    return optimizer


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The optimizer's tensors of a parameter, each of its shape: both moments, and the Kahan compensation."""
    state = optimizer.state.get(parameter, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and k != "step"}


def prime(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Makes a fresh optimizer one that has done `step` steps, with moments of 0. At a rate of 0 no parameter moves."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in (*optimizer.param_groups, *optimizer.state.values()):
        if isinstance(state.get("step"), Tensor):
            state["step"].fill_(step)
