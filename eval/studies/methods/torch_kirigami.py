"""torch-kirigami (https://pypi.org/project/torch-kirigami): its dependency graph, candidates, scores and plans.

The MLPs alone. Its greedy strategy verifies every removal by itself, which takes hours for thousands of neurons: here a
strategy of the library's own interface takes the lowest of the library's scores at once, as many as its budget of
parameters asks for. The graph is of the MLPs side by side, since nothing else is pruned.

N tokens, D width of the tower.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.models.sizes import count_params
from amp.settings.compare import PeerSettings
from amp.towers import Tower
from studies.compare import Trial
from studies.methods._library import accumulate_gradients

NEEDS = {"torch_kirigami": "torch-kirigami"}


class _SideBySide(nn.Module):
    """Each MLP on the same tokens."""

    def __init__(self, mlps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(mlps)

    def forward(self, tokens_ND: Tensor) -> list[Tensor]:
        return [mlp(tokens_ND) for mlp in self.mlps]


class _Lowest:
    """The candidates of the lowest scores, as few as the budget allows; a `Strategy` of the library."""

    def __init__(self, trial: Trial, metric: Any) -> None:
        self._trial, self._metric = trial, metric

    def select(self, context: Any) -> Any:
        from torch_kirigami.pruning import StrategyResult

        candidates, name = context.candidates, f"torch_kirigami {type(self._metric).__name__}"
        scores = self._trial.kept(name, lambda: context.score(self._metric, candidates))
        order = sorted(range(len(candidates)), key=lambda index: scores[index])
        # The library refuses to leave an MLP without a neuron.
        last = {str(candidates[index].key).rpartition(":")[0]: index for index in order}
        order = [index for index in order if index not in last.values()]
        least, most = 0, len(order)
        while least < most:
            count = (least + most) // 2
            removed = tuple(part for index in order[:count] for part in candidates[index].remove)
            least, most = (least, count) if context.within_budget(context.attempt(removed)) else (count + 1, most)
        return StrategyResult(tuple(candidates[index].key for index in order[:least]), "target_reached")


def prune(trial: Trial, settings: PeerSettings, size: float) -> Tower:
    """The tower at that size. Raises UserError for `scope: whole`, which is not run."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import GroupMagnitude, ParameterBudget, Pruner, WeightTaylor

    if settings.scope == "whole":
        raise UserError("scope", "whole: the plan of a whole network takes this library hours; mlp is what it does")
    tower = trial.build()
    if settings.importance == "taylor":
        accumulate_gradients(trial, tower)
    mlps = _SideBySide([slot.module for slot in tower.slots])
    others = count_params(tower) - sum(parameter.numel() for parameter in mlps.parameters())
    first = tower.slots[0].in_projections[0]
    example_ND = torch.zeros(2, first.in_features, device=first.weight.device, dtype=tower.dtype)
    pruner = Pruner(mlps, graph=DependencyGraph.build(mlps, args=(example_ND,)))
    ends = {id(linear) for slot in tower.slots for linear in slot.in_projections}
    paths = [path for path, module in mlps.named_modules() if id(module) in ends]
    pruner.prune(
        pruner.discover_candidates(targets=paths),
        budget=ParameterBudget(max_params=round(size * trial.num_params) - others),
        strategy=_Lowest(trial, WeightTaylor() if settings.importance == "taylor" else GroupMagnitude()),
    )
    tower.visual.requires_grad_(False).zero_grad()
    return tower
