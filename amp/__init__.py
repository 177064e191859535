"""Adaptive MLP Pruning (AMP): smaller vision transformers with the same features, without labels."""

from typing import Any

from amp.version import __version__

__all__ = ["__version__", "load_pruned"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `import amp`, --help and mistakes in the settings do without it.
    if name == "load_pruned":
        from amp.models import load_pruned

        return load_pruned
    raise AttributeError(f"module 'amp' has no attribute {name!r}")
