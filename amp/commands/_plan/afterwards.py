"""Where a command's results are, and what to type next."""

from pathlib import Path
from shlex import quote

from amp.settings.data import DataSettings


def after_pruning(folder: Path, images: DataSettings) -> str:
    """What to type after a pruning."""
    efficiency = f"  amp eval efficiency --model {quote(str(folder / 'pruned'))}"
    again = "  for another size, repeat the command with that size: it reuses the scores"
    return "\n".join([*_next(folder / "pruned", images), efficiency, again])


def after_distilling(folder: Path, images: DataSettings) -> str:
    """Where a distillation's results are, and what to type after it."""
    distilled = folder / "distilled"
    wrote = f"wrote {distilled}; the log is {folder / 'log.jsonl'}, TensorBoard reads {folder / 'tensorboard'}"
    return "\n".join([wrote, *_next(distilled, images)])


def _next(model: Path, images: DataSettings) -> list[str]:
    """Lines that load a model folder and compare it."""
    return [
        "next:",
        f"  python -c 'import amp; model, transform, tokenizer = amp.load_pruned(\"{model}\")'",
        f"  amp eval compare {quote(str(model))} --images DIR   # a folder of other images than {images.root}",
    ]
