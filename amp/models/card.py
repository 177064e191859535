"""`README.md` of a pruned model's folder: a model card in the format of the Hub of Hugging Face.

It holds no times and no paths of its own, so that equal models give equal bytes. Its last line is the digest of what is
above it: a card that somebody edited is told from one that is as it was written, and stays.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from amp.models.sizes import count_by_width
from amp.run.tables import human, table
from amp.towers import Tower, library, rebuild_dense, with_heads
from amp.towers.library import FOLDER, Files

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2603.08100"
MARK = "<!-- As it was written: sha256 "

Sizes = Callable[[Sequence[int]], dict[str, int]]


def card(
    tower: Tower,
    files: Files,
    provenance: Mapping[str, Any],
    measured: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> str:
    """The text of the card.

    Args:
        tower: sliced.
        files: of its library.
        provenance: of the folder; tells which weights were pruned, and by which version.
        measured: a quality's name -> its value, as `{"top-1 on ImageNet-1k": "79.3 %"}`.
        command: that made the folder.
    """
    name = _shown(tower.base["name"])
    origin: dict[str, Any] = library(tower.base["frame"]).native.origin(tower.base, _weights(provenance))
    head = ModelCardData(
        **origin,
        library_name=files.library_name,
        pipeline_tag=_task(tower),
        tags=["adaptive-mlp-pruning", "pruned"],
    )
    version = provenance.get("versions", {}).get("amp")
    made = [
        f"Made by adaptive-mlp-pruning{f' {version}' if version else ''}",
        *([f"with\n\n    {command}"] if command else []),
    ]
    parts = [
        f"---\n{head.to_yaml()}\n---\n\n# {name}, pruned",
        f"This is `{name}` of {files.library_name}, pruned: the MLPs of its vision transformer have fewer hidden "
        f"neurons{' and the attention has fewer heads' if tower.heads else ''}, selected by "
        f"[Adaptive MLP Pruning]({PAPER}). The rest of the architecture is that of the dense model.",
        _sizes(tower),
        *(
            ["## Measurements", table(["metric", "value"], [[key, str(own)] for key, own in measured.items()])]
            if measured
            else []
        ),
        "## How to load it",
        "With adaptive-mlp-pruning installed:",
        _python(f'import amp\nmodel, transform, tokenizer = amp.load_pruned("{FOLDER}")'),
        f"With {files.library_name} alone{files.why and '. '}{files.why or ':'}",
        _python(files.loading),
        "## How it was made",
        " ".join(made) + ("" if command else "."),
        _licence(origin),
    ]
    return sign("\n\n".join(parts))


def _shown(name: str) -> str:
    """A library's name or a hub id; of a path, its end."""
    own = Path(name.removesuffix(".json"))
    is_path = name.endswith(".json") or own.is_absolute() or name.startswith(".") or len(own.parts) > 2 or own.exists()
    return own.name if is_path else str(own)


def _sizes(tower: Tower) -> str:
    widths, heads, before, sizes = _measured(json.dumps(tower.base), bool(tower.heads))
    after = sizes(tower.counts)
    rows = [
        [word, human(before[key]), human(after[key]), f"{after[key] / before[key] - 1:+.1%}"]
        for key, word in (("params", "parameters"), ("flops", "FLOPs per image"))
    ]
    told = table(["vision tower", "dense", "pruned", "change"], rows)
    neurons = f"Hidden neurons of the {len(tower.widths)} MLPs, from the first block to the last"
    told += f"\n\n{neurons}: {_list(tower.widths)}; dense: {_list(widths)}."
    if heads:
        own = _list(tower.num_heads)
        told += f"\n\nAttention heads, from the first block to the last: {own}; dense: {_list(heads)}."
    return told


@lru_cache(maxsize=16)
def _measured(base: str, heads: bool) -> tuple[list[int], list[int], dict[str, int], Sizes]:
    """Dense widths and heads, `{params, flops}` of the dense tower, and counts -> those with them, of a tower's base as
    JSON; once for all sizes of a model.

    Args:
        heads: whether attention heads count among what may be removed.
    """
    dense = rebuild_dense(json.loads(base), "meta")
    dense = with_heads(dense) if heads else dense
    sizes = count_by_width(dense)
    return dense.widths, dense.num_heads, sizes(dense.counts), sizes


def _list(widths: Sequence[int]) -> str:
    return f"{widths[0]} in each" if len(set(widths)) == 1 else ", ".join(map(str, widths))


def _python(code: str) -> str:
    return f"```python\n{code}\n```"


def _licence(origin: Mapping[str, str]) -> str:
    known = origin.get("license")
    own = f", {known}" if known else ", which is not recorded here"
    return f"These weights have the licence of the weights that they were pruned from{own}."


def _task(tower: Tower) -> str:
    if tower.encode_text is not None:
        return "zero-shot-image-classification"
    model: Any = tower.model
    classes = getattr(model, "num_classes", 0) or ("Classification" in type(model).__name__)
    return "image-classification" if classes else "image-feature-extraction"


def _weights(provenance: Mapping[str, Any]) -> str | None:
    """The tag or file of the dense model's weights, as the settings of a pruning or a distillation name it."""
    settings = provenance.get("settings", {})
    own = settings.get("model") or settings.get("teacher") or {}
    found = own.get("pretrained")
    return None if found is None else str(found)


def sign(text: str) -> str:
    """The text with its digest as the last line."""
    return f"{text}\n\n{MARK}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_edited(path: Path) -> bool:
    """Whether a card is there that is not as `card` wrote it."""
    if not path.is_file():
        return False
    text, _, _ = path.read_bytes().decode("utf-8", errors="replace").rpartition(f"\n\n{MARK}")
    return sign(text).encode() != path.read_bytes()
