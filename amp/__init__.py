"""Adaptive MLP Pruning (AMP): smaller vision transformers with the same features, without labels.

>>> pruned = amp.prune(model, images, params=0.6)  # a model object of timm, open_clip or transformers
>>> amp.distill(pruned, model, images, steps=500)
>>> amp.save(pruned, "folder")
>>> model, transform, tokenizer = amp.load_pruned("folder")
"""

from typing import TYPE_CHECKING, Any

from amp.version import __version__

if TYPE_CHECKING:
    from amp.api import compile, distill, load_pruned, prune, save

__all__ = ["__version__", "compile", "distill", "load_pruned", "prune", "save"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `import amp`, --help and mistakes in the settings do without it.
    if name in __all__:
        import amp.api

        return getattr(amp.api, name)
    raise AttributeError(f"module 'amp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
