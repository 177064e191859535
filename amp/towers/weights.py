"""Weights that are held once: modules built without any, which take over the tensors of the file that is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils import serialization

from amp.errors import UserError

ALIGNMENT = 64  # bytes


@contextmanager
def without_weights(source: str | None = None) -> Iterator[None]:
    """Modules built inside keep their parameters on the meta device until a state dict is loaded, and then take its
    tensors over, cast to the parameter's dtype: a model larger than half the memory can be loaded, and no time goes
    into random weights. Buffers that no file holds (masks, rotary tables) are computed as ever.

    The libraries' own loading, conversions included, works inside and after it.

    Args:
        source: a file that the library will load inside; mapped into memory where its format allows, not read.
    """
    buffers: dict[tuple[nn.Module, str], Tensor] = {}
    taking_over: set[nn.Module] = set()

    def leave_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if module not in taking_over:
            taking_over.add(module)
            module.register_load_state_dict_pre_hook(_take_over)
        # What replaces an earlier parameter is a loaded one, or small.
        if parameter is None or parameter.is_meta or module._parameters.get(name) is not None:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    def remember(module: nn.Module, name: str, buffer: Tensor | None) -> None:
        if buffer is not None and not buffer.is_meta:
            buffers[module, name] = buffer

    handles = [
        register_module_parameter_registration_hook(leave_empty),
        register_module_buffer_registration_hook(remember),
    ]
    try:
        config: Any = serialization.config
        with config.patch("load.mmap", source is not None and is_zipfile(source)):
            yield
    finally:
        for handle in handles:
            handle.remove()
    for (module, name), buffer in buffers.items():
        now = module._buffers.get(name)
        # A library that moves its empty model to the meta device takes the buffers along.
        if now is not None and now.is_meta:
            module._buffers[name] = buffer.to(now.dtype)


def _take_over(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
    """Before a module loads: its empty parameters become the file's tensors, in the dtype they were built with."""
    empty = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    if not any(parameter.is_meta for parameter in empty.values()):
        return
    metadata["assign_to_params_buffers"] = True
    for name, parameter in empty.items():
        tensor = state.get(prefix + name)
        if isinstance(tensor, Tensor):
            own = tensor.to(parameter.dtype)
            # Sums are taken in another order over memory that torch's allocator would align otherwise.
            state[prefix + name] = own if own.data_ptr() % ALIGNMENT == 0 and own.is_contiguous() else own.clone()


def check_complete(model: nn.Module, source: str) -> None:
    """Raises UserError when a parameter got no tensor from the weights file `source`."""
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise UserError("model.pretrained", f"{source}: {len(missing)} tensors are missing, {missing[0]} first")


@torch.no_grad()
def fill_randomly(model: nn.Module) -> None:
    """Gives every empty parameter values on the CPU, of a size that keeps activations finite."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                values = torch.randn(parameter.shape, dtype=parameter.dtype) * 0.02
                module._parameters[name] = nn.Parameter(values, requires_grad=False)
