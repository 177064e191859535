"""Some steps of gradient descent on one sliced MLP, on tokens that were seen to enter it: in-projections move too.

N tokens, D width of the tower.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from amp.pruning.refit._rows import Rows
from amp.run.world import world
from amp.towers.mlps.slots import MlpSlot

RATE, WARM_UP, BETAS = 0.02, 10, (0.9, 0.99)  # the rate of a weight is a share of the mean size of its matrix


def tune(slot: MlpSlot, gain_D: Tensor, sorts: Sequence[Rows], steps: int, seed: int) -> bool:
    """Changes an MLP's weights where that brings its branch closer to what is asked of it, on the images left out.

    All processes take the same steps.

    Args:
        gain_D: by which the block multiplies the MLP's output.
        sorts: tokens that enter it.
        seed: of the tokens of each step.
    Returns:
        whether the weights have changed.
    """
    places = [rows.learned_and_left_out() for rows in sorts]
    if any(len(own_N) == 0 for both in places for own_N in both):
        return False
    twin = slot.twin(torch.float32)
    left_out = [out_N for _, out_N in places]
    before = _error(twin, gain_D, sorts, left_out)
    _descend(twin, gain_D, sorts, [learned_N for learned_N, _ in places], steps, seed)
    if not _error(twin, gain_D, sorts, left_out) < before:
        return False
    # Of one process for all, so that rounding can never part their ways.
    states = world().broadcast([{key: t.cpu() for key, t in own.state_dict().items()} for own in twin.modules])
    for module, state in zip(slot.modules, states, strict=True):
        module.load_state_dict(state)
    return True


def _errors(twin: MlpSlot, gain_D: Tensor, tokens: Sequence[Tensor]) -> Tensor:
    """(N,) squared, of what the branch adds to the hidden states for tokens (entering, asked)."""
    entering_ND, asked_ND = tokens
    return (gain_D * twin.run(entering_ND) - asked_ND).square().sum(1)


@torch.no_grad()
def _error(twin: MlpSlot, gain_D: Tensor, sorts: Sequence[Rows], places: Sequence[Tensor]) -> float:
    """Of the tokens at these places of each sort."""
    errors = [
        rows.weight * _errors(twin, gain_D, rows.at(own_N)).sum() for rows, own_N in zip(sorts, places, strict=True)
    ]
    return float(sum(errors))


def _descend(
    twin: MlpSlot, gain_D: Tensor, sorts: Sequence[Rows], places: Sequence[Tensor], steps: int, seed: int
) -> None:
    """Adam on the tokens at these places of each sort."""
    generator = torch.Generator().manual_seed(seed)
    twin.module.requires_grad_(False)
    groups = []
    for module in twin.modules:
        weight = module.get_parameter("weight")
        size = float(weight.detach().square().mean().sqrt())
        groups.append({"params": [p.requires_grad_() for p in module.parameters(recurse=False)], "lr": RATE * size})
    optimizer = torch.optim.Adam(groups, betas=BETAS, fused=gain_D.is_cuda)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
    )
    wholes = [rows.weight * len(own_N) for rows, own_N in zip(sorts, places, strict=True)]
    shares = [whole / sum(wholes) / rows.at_a_step for rows, whole in zip(sorts, wholes, strict=True)]
    weights_N = torch.cat([gain_D.new_full((rows.at_a_step,), own) for rows, own in zip(sorts, shares, strict=True)])
    # Those of all steps at once, so that a GPU need not wait for them.
    chosen = [
        [
            own_N[torch.randint(len(own_N), (rows.at_a_step,), generator=generator)]
            for rows, own_N in zip(sorts, places, strict=True)
        ]
        for _ in range(steps)
    ]
    chosen_SN = [torch.stack(of_sort).to(gain_D.device) for of_sort in zip(*chosen, strict=True)]
    with torch.enable_grad():
        for own in zip(*chosen_SN, strict=True):
            drawn = [rows.at(own_N) for rows, own_N in zip(sorts, own, strict=True)]
            optimizer.zero_grad()
            tokens = [torch.cat(own) for own in zip(*drawn, strict=True)]
            (_errors(twin, gain_D, tokens) @ weights_N).backward()
            optimizer.step()
            schedule.step()
