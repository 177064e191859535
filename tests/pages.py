"""The pages that people read: their blocks of code, what each block needs, and the code words of their text.

A block of Python or of commands that nothing can run here has a mark on the line before it, which says what is missing:
`<!-- needs weights and data -->`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT
from PIL import Image

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
_BLOCK = re.compile(r"(?:^<!-- needs (?P<needs>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
_MARK = re.compile(r"^<!-- needs .* -->$", re.M)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        place: of its first line, as `docs/export.md:12`.
        needs: what it takes to run it that is not here; None: nothing.
    """

    place: str
    language: str
    code: str
    needs: str | None


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[Block]:
    """Of one language."""
    found, text = [], read(page)
    for match in _BLOCK.finditer(text):
        place = f"{page}:{text.count(chr(10), 0, match.start('code')) + 1}"
        found.append(Block(place, match["language"], match["code"], match["needs"]))
    assert sum(block.needs is not None for block in found) == len(_MARK.findall(text)), (
        f"{page}: a mark before no block"
    )
    return [block for block in found if block.language == language]


def prose(page: str) -> str:
    """The page without its blocks, fenced or indented."""
    return re.sub(r"^(?: {4}|\t).*$", "", _BLOCK.sub("", read(page)), flags=re.M)


def code_words(page: str) -> list[str]:
    """What stands between backticks in the text."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(page))]


def commands(code: str) -> list[str]:
    """The command lines of a block, without comments."""
    lines = (re.sub(r"(?:^|\s)#.*", "", line).strip() for line in code.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]


def picture(width: int, height: int) -> Image.Image:
    """Noise over a gradient, in RGB, always the same."""
    generator = np.random.default_rng(width * 1000 + height)
    gradient = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    noise = generator.integers(0, 55, (height, width, 3))
    return Image.fromarray((gradient + noise).astype(np.uint8))


def documented(page: str, name: str) -> Any:
    """The function of that name in a page."""
    (block,) = (block for block in blocks(page, "python") if f"def {name}(" in block.code)
    space: dict[str, Any] = {}
    exec(compile(block.code, block.place, "exec"), space)
    return space[name]


def run(parts: list[Block], space: dict[str, Any]) -> dict[str, Any]:
    """What the names are after running blocks of Python one after the other."""
    for block in parts:
        exec(compile(block.code, block.place, "exec"), space)
    return space


def shown(path: Path) -> list[Block]:
    """The cells of a notebook."""
    import json

    cells = enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"])
    return [
        Block(f"{path.name}:{i}", "python", "".join(c["source"]), None) for i, c in cells if c["cell_type"] == "code"
    ]
