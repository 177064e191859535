"""For the tests of exported files: pictures, and the code that docs/export.md shows."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


def picture(width: int, height: int) -> Image.Image:
    """Noise over a gradient, in RGB, always the same."""
    generator = np.random.default_rng(width * 1000 + height)
    gradient = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    noise = generator.integers(0, 55, (height, width, 3))
    return Image.fromarray((gradient + noise).astype(np.uint8))


def blocks() -> list[str]:
    """The blocks of Python in docs/export.md."""
    return re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)


def documented(name: str) -> Any:
    """The function of that name in docs/export.md."""
    (block,) = (block for block in blocks() if f"def {name}(" in block)
    space: dict[str, Any] = {}
    exec(compile(block, str(DOCS), "exec"), space)
    return space[name]
