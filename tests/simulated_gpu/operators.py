"""Operators on the tensors of the simulated GPU: checked for their devices, then computed on the host.

As a plugin of pytest (`-p simulated_gpu.operators`) it holds for all that the process does, in every thread.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# Operators that read and write no element: the ones of CUDA do them.
UNTOUCHED = {
    f"aten::{name}"
    for name in (
        *("detach", "alias", "_unsafe_view", "lift_fresh", "_reshape_alias", "set_", "resize_", "record_stream"),
        *("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "is_pinned", "_pin_memory"),
        *("squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_", "requires_grad_"),
    )
}
TAKES_HOST_INDICES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class SimulatedGpu(TorchDispatchMode):
    """Within it, tensors on CUDA can be computed with. Raises RuntimeError where devices are mixed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        asked = kwargs.get("device")
        if not any(tensor.is_cuda for tensor in tensors) and (asked is None or torch.device(asked).type != "cuda"):
            return func(*args, **kwargs)
        name = func._schema.name
        if name in UNTOUCHED:
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode it comes here whole
                return func.decompose(*args, **kwargs)
        if func.is_view:
            return func(*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            return on_host(args[0]).item()
        if name == "aten::copy_":
            on_host(args[0]).copy_(on_host(args[1]))
            return args[0]
        if name == "aten::_to_copy":
            return _copied(*args, **kwargs)
        if name not in TAKES_HOST_INDICES:
            _check_devices(name, tensors)
        return _computed(HOST_KERNELS.get(name, func), args, kwargs)


def _check_devices(name: str, tensors: list[Tensor]) -> None:
    if any(tensor.is_cpu and tensor.ndim for tensor in tensors):
        which = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {which}")


def on_host(tensor: Tensor) -> Tensor:
    """A tensor of the host over the memory of one of the GPU; others as they are."""
    if not tensor.is_cuda:
        return tensor
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    whole = torch.frombuffer(memory, dtype=tensor.dtype, count=storage.nbytes() // tensor.element_size())
    return whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _on_gpu(tensor: Tensor) -> Tensor:
    copy = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda")
    on_host(copy).copy_(tensor)
    return copy


def _copied(source: Tensor, *, device: Any = None, **how: Any) -> Tensor:
    """`Tensor.to`, between devices too."""
    target = source.device if device is None else torch.device(device)
    how = {key: value for key, value in how.items() if key not in ("pin_memory", "non_blocking")}
    copy: Tensor = aten._to_copy.default(on_host(source), **how)
    return _on_gpu(copy) if target.type == "cuda" else copy


def _computed(kernel: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    lent: dict[int, tuple[Tensor, Tensor]] = {}

    def lend(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_cuda:
            return lent.setdefault(id(value), (on_host(value), value))[0]
        return value

    own_args, own_kwargs = tree_map(lend, (args, kwargs))
    if "device" in own_kwargs:
        own_kwargs["device"] = torch.device("cpu")
    found = kernel(*own_args, **own_kwargs)
    written = {id(own): tensor for own, tensor in lent.values()}

    def take(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return written[id(value)] if id(value) in written else _on_gpu(value)

    return tree_map(take, found)


def _mm(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """A CPU has no product of one dtype that is summed in another."""
    return torch.mm(a, b) if out_dtype is None else torch.mm(a.to(out_dtype), b.to(out_dtype))


HOST_KERNELS: dict[str, Callable[..., Any]] = {"aten::mm": _mm}


def _install() -> None:
    torch.autograd.set_multithreading_enabled(False)  # else the backward pass runs in a thread of the device
    SimulatedGpu().__enter__()


def _in_threads_too() -> None:
    run = threading.Thread.run

    def run_installed(thread: threading.Thread) -> None:
        _install()
        run(thread)

    threading.Thread.run = run_installed  # type: ignore[method-assign]


if torch.cuda.is_available() and torch.cuda.get_device_name() == "Simulated GPU":
    for kernel in ("flash", "mem_efficient", "cudnn"):  # attention by its plain products
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(False)
    _install()
    _in_threads_too()
