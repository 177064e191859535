"""torch-pruning (https://github.com/VainF/Torch-Pruning): its BasePruner, with its group importances.

`scope: mlp` ignores every layer but the in-projections of the MLPs. `scope: whole` is the library's way with vision
transformers: embedding, head dimensions and MLPs at one ratio, heads told by `num_heads`. The embedding reaches the
feature, whose channels have to stay in their places where texts or neighbours are compared with it: a selection, which
the library is told to leave alone and which does not count as parameters, puts what is left of them back there.

B images, C channels, S side in pixels, D width of a feature.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from amp.errors import UserError
from amp.settings.compare import PeerSettings
from amp.towers import Tower
from studies.compare import Trial
from studies.methods._library import accumulate_gradients, meet

NEEDS = {"torch_pruning": "torch-pruning"}


def prune(trial: Trial, settings: PeerSettings, size: float) -> Tower:
    """The tower at that size, by the ratio that the library has to be told for it.

    Raises:
        UserError: `scope: whole` of a tower whose embedding is not its feature.
    """
    if settings.scope == "whole" and trial.dense.encode_image is not None:
        raise UserError("scope", "whole: a projection that stands behind the feature would not be pruned with it")
    gradients = trial.kept("gradients", lambda: _gradients(trial)) if settings.importance == "taylor" else []
    return meet(trial, size, lambda ratio: _at(trial, settings, gradients, ratio))


def _gradients(trial: Trial) -> list[Tensor | None]:
    tower = trial.build()
    accumulate_gradients(trial, tower)
    return [parameter.grad for parameter in tower.visual.parameters()]


class _Placed(nn.Module):
    """The tower's feature (B, D), each channel in its place of the dense one's."""

    def __init__(self, tower: Tower, example_BCSS: Tensor) -> None:
        super().__init__()
        self.visual, self._feature = tower.visual, tower.feature
        width = tower.feature(example_BCSS).shape[1]
        self.places = nn.Linear(width, width, bias=False, device=example_BCSS.device, dtype=tower.dtype)
        nn.init.eye_(self.places.weight)
        self.places.weight.grad = torch.zeros_like(self.places.weight)  # It has no say in what is important.

    def forward(self, images_BCSS: Tensor) -> Tensor:
        placed_BD: Tensor = self.places(self._feature(images_BCSS))
        return placed_BD


def _at(trial: Trial, settings: PeerSettings, gradients: Sequence[Tensor | None], ratio: float) -> Tower:
    import torch_pruning

    tower, whole = trial.build(), settings.scope == "whole"
    example_BCSS = trial.scoring_images[0][:2]
    placed = _Placed(tower, example_BCSS).requires_grad_(True)
    for parameter, gradient in zip(tower.visual.parameters(), gradients, strict=False):
        parameter.grad = gradient
    kinds = torch_pruning.importance
    importance = kinds.GroupTaylorImportance if settings.importance == "taylor" else kinds.GroupMagnitudeImportance
    attentions = [
        module for module in tower.visual.modules() if hasattr(module, "qkv") and hasattr(module, "num_heads")
    ]
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # of parameters outside of layers, which it prunes as it says
        pruner = torch_pruning.pruner.BasePruner(
            placed,
            example_BCSS,
            importance(),
            global_pruning=settings.groups != "local",
            isomorphic=settings.groups == "isomorphic",
            pruning_ratio=ratio,
            ignored_layers=[placed.places] if whole else _all_but_mlps(placed, tower),
            num_heads={attention.qkv: attention.num_heads for attention in attentions} if whole else {},
        )
        pruner.step()
    placed.requires_grad_(False).zero_grad()
    if not whole:
        return tower
    for attention in attentions:
        _tell(attention, pruner.num_heads[attention.qkv])
    return replace(tower, feature=placed)


def _all_but_mlps(placed: nn.Module, tower: Tower) -> list[nn.Module]:
    ends = {id(linear) for slot in tower.slots for linear in slot.in_projections}
    # Attention's parameters lie in nn.MultiheadAttention itself.
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    return [module for module in placed.modules() if isinstance(module, kinds) and id(module) not in ends]


def _tell(attention: nn.Module, num_heads: int) -> None:
    """What an attention of timm keeps as numbers beside its layers; the scale stays that of the dense heads."""
    qkv = attention.get_submodule("qkv")
    assert isinstance(qkv, nn.Linear)
    head_dim = qkv.out_features // (3 * num_heads)
    own = {"num_heads": num_heads, "head_dim": head_dim, "attn_dim": num_heads * head_dim}
    for key, value in {**own, "fused_attn": False}.items():  # Fused, it would take the scale of the narrower heads.
        setattr(attention, key, value)
