"""What the frames share of models that are given as objects: their precision, and whether a name rebuilds them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amp.settings.base import Precision
from amp.towers.base import Tower, quiet


def made_by(model: nn.Module, package: str) -> bool:
    """Whether its class, or one that it inherits from, is of a package."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(model).__mro__)


def dtype_of(visual: nn.Module) -> torch.dtype:
    """In which images enter: that of the patch embedding, or of the first parameter."""
    convolution = next((m for m in visual.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    weight: Tensor = convolution.weight if convolution is not None else next(visual.parameters())
    return weight.dtype


def precision_of(visual: nn.Module) -> Precision:
    """That a folder of the model is loaded in."""
    return "bf16" if dtype_of(visual) == torch.bfloat16 else "fp32"


def builds_the_same(model: nn.Module, build: Callable[[], Any]) -> bool:
    """Whether a library's factory, on the meta device, makes a model of the same modules and shapes."""
    try:
        with quiet(), torch.device("meta"):
            return _signature(build()) == _signature(model)
    except Exception:  # A factory raises anything at arguments that are not its own.
        return False


def _signature(model: nn.Module) -> tuple[object, ...]:
    kinds = {
        name: f"{type(module).__module__}.{type(module).__name__}".removesuffix("Fp32")  # open_clip's, by precision
        for name, module in model.named_modules()
        if not type(module).__name__.startswith(("Drop", "Identity"))  # what only training sees
    }
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, kinds


def not_rebuilt(tower: Tower) -> Tower:
    """The tower of a model that no name rebuilds: it is pruned all the same, but not saved as a folder."""
    return replace(tower, base={**tower.base, "model_config": None})
