"""A model and one of its outputs as one program with a free batch size: images in fp32, one fp32 vector an image.

B images, C channels, S side in pixels, N numbers of a vector.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amp.errors import UserError
from amp.export.outputs import Read, reader
from amp.models.throughput import rebuild
from amp.towers import Tower
from amp.towers.base import first_line, quiet

Precision = Literal["fp32", "fp16"]
TRACED_BATCH = 2  # A batch of one would be taken for a size that never changes.


class Program(nn.Module):
    """images (B, C, S, S) fp32 -> (B, N) fp32, in a copy of the tower's model on the CPU, in eval mode.

    The copy is without what torch.compile made of the model.

    Args:
        output: as `amp.export.outputs.OUTPUTS` has it.
        precision: of the copy's weights; what its library keeps in fp32, as norms, stays so.
    Raises:
        UserError: the model has no such output.
    """

    def __init__(self, tower: Tower, output: str, precision: Precision = "fp32") -> None:
        super().__init__()
        self.model: nn.Module
        self.read: Read
        if precision == "fp32":
            memo: dict[int, Any] = {}
            for parameter in tower.model.parameters():
                memo[id(parameter)] = nn.Parameter(parameter.detach().to("cpu", torch.float32), requires_grad=False)
            self.model, self.read = copy.deepcopy((tower.model, reader(tower, output)), memo)
            self.model.to("cpu").eval()
        else:
            half = _in_half(tower)
            self.model, self.read = half.model, reader(half, output)
        self.dtype = torch.float32 if precision == "fp32" else torch.float16

    def forward(self, images: Tensor) -> Tensor:
        return self.read(images.to(self.dtype)).float()

    def unread(self, images_BCSS: Tensor) -> list[str]:
        """Parameters of the model that the output does not need: a text tower, a head that is not asked for."""
        with torch.no_grad(), _Touched() as touched:
            self(images_BCSS)
        return [name for name, parameter in self.model.named_parameters() if id(parameter) not in touched.ids]

    def drop(self, names: Iterable[str]) -> None:
        """Empties these parameters, which torch.export would write all the same."""
        for name in names:
            parameter = self.model.get_parameter(name)
            parameter.data = parameter.data.new_empty(0)


class _Touched(TorchDispatchMode):
    """Which tensors are given to any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ids |= {id(value) for value in tree_leaves((args, kwargs))}
        return function(*args, **(kwargs or {}))


def _in_half(tower: Tower) -> Tower:
    """The tower in fp16, built by its library as for bf16: which of them does what to norms and buffers is its own."""
    half = rebuild({**tower.base, "precision": "bf16"}, "meta", tower.counts)
    for path, module in tower.model.named_modules():
        twin = half.model.get_submodule(path)
        for key, parameter in module._parameters.items():
            if parameter is not None:
                value = _as_half(parameter.detach(), twin._parameters[key])
                twin._parameters[key] = nn.Parameter(value, requires_grad=False)
        for key, buffer in module._buffers.items():
            twin._buffers[key] = None if buffer is None else _as_half(buffer, twin._buffers[key])
    return half


def _as_half(value: Tensor, like: Tensor | None) -> Tensor:
    """`value` on the CPU, in fp16 where `like` is in bf16."""
    lower = like is not None and like.dtype == torch.bfloat16
    return value.to("cpu", torch.float16 if lower else torch.float32 if value.is_floating_point() else value.dtype)


def trace(program: Program, images_BCSS: Tensor, name: str) -> ExportedProgram:
    """The program as torch.export sees it, for any number of images.

    Args:
        images_BCSS: fp32, at least two.
        name: of the model, for messages.
    Raises:
        UserError: the model branches on its images, or is made for one batch size.
    """
    try:
        with _exporting():
            return torch.export.export(program, (images_BCSS,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    except Exception as error:  # torch.export raises anything at what it cannot trace.
        reason = first_line(error) or type(error).__name__
        raise UserError(name, f"cannot be exported for batches of any size ({reason})") from None


def to_onnx(traced: ExportedProgram, output: str, name: str) -> Any:
    """torch's ONNX program of a trace, with the input `images` (batch, C, S, S) and one output.

    Raises:
        UserError: an operation of the model has none in ONNX.
    """
    try:
        with _exporting():
            return torch.onnx.export(
                traced,
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=[output],
                dynamic_shapes={"images": {0: "batch"}},
            )
    except Exception as error:
        reason = first_line(error) or type(error).__name__
        raise UserError(name, f"cannot be written as ONNX ({reason}); out.pt2 may work") from None


@contextmanager
def _exporting() -> Iterator[None]:
    """The exporters speak of their own workings; what matters to the user is checked on the written file."""
    with torch.no_grad(), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
