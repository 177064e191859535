"""The file to write: what can be said of it before torch is imported."""

import importlib.util
from pathlib import Path

from amp.errors import UserError
from amp.run.options import check_writable

ONNX, TORCH = SUFFIXES = (".onnx", ".pt2")


def check_target(target: str | Path) -> Path:
    """The file to write, as a path.

    Raises:
        UserError: its name ends in another way, it cannot be written, or what writes it is not installed.
    """
    path = Path(target)
    if path.suffix not in SUFFIXES:
        raise UserError(str(target), f"expected a file name that ends in {' or '.join(SUFFIXES)}")
    if path.suffix == ONNX and not is_installed("onnxscript"):
        raise UserError(
            str(target), 'writing ONNX needs onnx and onnxscript: pip install "adaptive-mlp-pruning[export]"'
        )
    return check_writable("TO", str(path))


def images_file(path: Path) -> Path:
    """Where it is said how images are prepared, for out.onnx and out.pt2 alike."""
    return path.with_suffix(".preprocess.json")


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported for it."""
    return importlib.util.find_spec(package) is not None
