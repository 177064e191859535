"""Weights of a file: read without running its code, and held once, by modules built without any that take them over."""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils import serialization

from amp.errors import UserError, shortened
from amp.run.console import say

ALIGNMENT = 64  # bytes
LARGE = 300 << 20  # bytes of weights, which take seconds

State = dict[str, Tensor]
WRAPPED = ("state_dict", "model", "module")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
EMA_FIRST = ("state_dict_ema", "model_ema", *WRAPPED)


def tell_loading(told: str, source: Path, fetched: bool = False) -> None:
    """Says that weights are read that may take long: large ones, and those that may have to be fetched.

    Args:
        told: what they are of.
        source: a file, or a folder of files.
        fetched: whether a library may have to download them.
    """
    files = source.glob("*") if source.is_dir() else [source]
    if fetched or sum(file.stat().st_size for file in files if file.is_file()) > LARGE:
        say(f"loading {told}")


def read_state(path: str | Path, order: Sequence[str] = WRAPPED) -> State:
    """The named tensors of a weights file, mapped into memory where its format allows. Never runs code from it.

    Args:
        order: keys that a checkpoint of more than one set may hold its weights by; the first one there is taken.
    Raises:
        UserError: unreadable, or more than named tensors.
    """
    state = _read(path)
    for key in order:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(path, "does not hold a state dict of named tensors")
    return state


def _read(path: str | Path) -> Any:
    try:
        if str(path).endswith(".safetensors"):
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError as error:
        raise UserError(path, why_refused(error)) from None
    except (SafetensorError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(path, f"cannot be read ({shortened(error)})") from None


def why_refused(error: pickle.UnpicklingError) -> str:
    """What a pickle holds that is not loaded, and the way out."""
    text = str(error)
    if "Unsupported" not in text and "GLOBAL" not in text:
        return "not a file of weights"
    return (
        "refused: it holds more than tensors, and loading it could run code. "
        "If it is a whole pickled model (torch.save(model)), save its state_dict() instead"
    )


def averaged_note(path: str, order: Sequence[str] = WRAPPED) -> tuple[str, ...]:
    """A note of which weights are taken, where a checkpoint holds averaged (EMA) ones beside those of its last step."""
    if not is_zipfile(path):
        return ()
    try:
        keys = [key for key, value in _read(path).items() if isinstance(value, dict)]
    except (UserError, AttributeError):
        return ()
    taken = next((key for key in order if key in keys), None)
    others = [key for key in (*AVERAGED, *WRAPPED) if key in keys and key != taken]
    if taken is None or not any(key in AVERAGED for key in (taken, *others)):
        return ()
    return (f"weights: using {taken!r} of {path} instead of {' or '.join(map(repr, others))}",) if others else ()


@contextmanager
def without_weights(source: str | None = None, device: str = "cpu") -> Iterator[None]:
    """Modules built inside keep their parameters on the meta device until a state dict is loaded, and then take its
    tensors over, cast to the parameter's dtype: a model larger than half the memory can be loaded, and no time goes
    into random weights. Buffers that no file holds (masks, rotary tables) are computed as ever.

    The libraries' own loading, conversions included, works inside and after it. A position embedding in half precision
    is resampled in fp32, for open_clip would have the CPU do it as it is, which it cannot.

    Args:
        source: a file that the library will load inside; mapped into memory where its format allows, not read.
        device: where the tensors are taken over to, straight from the file.
    """
    taking_over: set[nn.Module] = set()

    def leave_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if module not in taking_over:
            taking_over.add(module)
            module.register_load_state_dict_pre_hook(_TakeOver(device))
        # What replaces an earlier parameter is a loaded one, or small.
        if parameter is None or parameter.is_meta or module._parameters.get(name) is not None:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    def cast(module: nn.Module, *where: Any, **named: Any) -> nn.Module:
        # A library that moves its empty model to the meta device must not take the buffers along: from these it
        # computes others, for another size of images.
        _, dtype, *_ = torch._C._nn._parse_to(*where, **named)
        return module if dtype is None else move(module, dtype)

    handle = register_module_parameter_registration_hook(leave_empty)
    module: Any = nn.Module
    move, module.to = module.to, cast
    try:
        config: Any = serialization.config
        with config.patch("load.mmap", source is not None and is_zipfile(source)), _InterpolationInFp32():
            yield
    finally:
        module.to = move
        handle.remove()


class _InterpolationInFp32(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is interpolate and args and args[0].dtype in (torch.float16, torch.bfloat16):
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _TakeOver:
    """Before a module loads: its empty parameters become the file's tensors, in the dtype they were built with."""

    device: str

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, *rest: Any) -> None:
        empty = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
        if not any(parameter.is_meta for parameter in empty.values()):
            return
        metadata["assign_to_params_buffers"] = True
        for name, parameter in empty.items():
            tensor = state.get(prefix + name)
            if isinstance(tensor, Tensor):
                # First there, then cast: the device casts faster, and an expanded tensor stays small on its way.
                own = tensor.to(self.device).to(parameter.dtype)
                # Sums are taken in another order over memory that torch's allocator would align otherwise.
                as_it_is = own.is_contiguous() and (not own.is_cpu or own.data_ptr() % ALIGNMENT == 0)
                state[prefix + name] = own if as_it_is else own.clone()


def check_complete(model: nn.Module, source: str) -> None:
    """Raises UserError when a parameter got no tensor from the weights file `source`."""
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise UserError("model.pretrained", f"{source}: {len(missing)} tensors are missing, the first is {missing[0]}")


@torch.no_grad()
def fill_randomly(model: nn.Module, device: str = "cpu") -> None:
    """Gives every empty parameter values, drawn on the device, of a size that keeps activations finite."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                values = torch.randn(parameter.shape, dtype=parameter.dtype, device=device) * 0.02
                module._parameters[name] = nn.Parameter(values, requires_grad=False)
