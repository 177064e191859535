"""The notebook and the page of the calls in memory run as they stand."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT


def _cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts", [_cells(ROOT / "examples/quickstart.ipynb"), _blocks(ROOT / "docs/in_memory.md")], ids=["notebook", "page"]
)
def test_what_is_shown_runs(parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for part in parts:
        exec(compile(part, "example", "exec"), space)
    assert (tmp_path / "trained" / "model.safetensors").is_file()
