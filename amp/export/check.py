"""Whether a written file gives what the model gives: it is read back, as a stranger would, and run on images."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from amp.errors import StoppedError
from amp.export.program import Precision
from amp.export.target import ONNX, is_installed

# Of the largest number in the model's output, so that it means the same for logits of 20 and embeddings of 0.01.
BOUNDS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2}
BATCHES = (1, 3)


def can_run(file: Path) -> bool:
    """Whether what reads such a file is installed: onnxruntime for ONNX; torch reads its own."""
    return file.suffix != ONNX or is_installed("onnxruntime")


def check_images(side: int) -> list[Tensor]:
    """Random images (B, 3, S, S) fp32, always the same: a single one and a batch."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, side, side, generator=generator) for size in BATCHES]


def check_file(
    file: Path, images: Sequence[Tensor], expected: Sequence[Tensor], precision: Precision, name: str
) -> tuple[float, float]:
    """The largest difference between the file's outputs and the expected ones, and the largest expected number.

    Args:
        file: .onnx or .pt2.
        images: batches.
        expected: of the model in fp32.
        name: what the file will be called, for messages.
    Raises:
        StoppedError: it gives something else.
    """
    run = _run_onnx(file, precision) if file.suffix == ONNX else _run_torch(file)
    with torch.no_grad():
        given = [run(images_BCSS) for images_BCSS in images]
    own, wanted = torch.cat(given), torch.cat([*expected])
    difference, scale = float((own - wanted).abs().max()), float(wanted.abs().max())
    bound = BOUNDS[precision]
    if not own.isfinite().all():
        way_out = "; its activations may be too large for fp16: use fp32" if precision == "fp16" else ""
        raise StoppedError(f"{name}: not written: its outputs are NaN or infinite{way_out}")
    if not difference <= bound * scale:
        raise StoppedError(
            f"{name}: not written: its outputs differ from the model's by {difference:.2g}, "
            f"which is {difference / scale:.1g} of the largest ({scale:.3g}); {bound:g} is allowed for {precision}"
        )
    return difference, scale


def _run_onnx(file: Path, precision: Precision) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if precision == "fp16":
        # What optimises layouts for CPUs can crash on half precision (microsoft/onnxruntime#28392).
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images_BCSS: torch.from_numpy(session.run(None, {"images": images_BCSS.numpy()})[0])


def _run_torch(file: Path) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return loaded
