"""A model and one of its outputs as one program with a free batch size: images in fp32, one fp32 vector an image.

B images, C channels, S side in pixels, N numbers of a vector.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from amp.errors import UserError
from amp.export.outputs import Read
from amp.towers import Tower
from amp.towers.base import first_line, quiet

Precision = Literal["fp32", "fp16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
TRACED_BATCH = 2  # A batch of one would be taken for a size that never changes.


class Program(nn.Module):
    """images (B, C, S, S) fp32 -> (B, N) fp32, in a copy of the model whose parameters have another precision.

    The copy is on the CPU, in eval mode, and without what torch.compile made of the model.
    """

    def __init__(self, tower: Tower, read: Read, dtype: torch.dtype) -> None:
        super().__init__()
        memo: dict[int, Any] = {}
        for parameter in tower.model.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to("cpu", dtype), requires_grad=False)
        self.model, self.read = copy.deepcopy((tower.model, read), memo)
        self.model.to("cpu").eval()
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.read(images.to(self.dtype)).float()


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
            return torch.export.export(
                program, (images_BCSS,), dynamic_shapes=({0: Dim("batch")},), strict=False
            )
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
