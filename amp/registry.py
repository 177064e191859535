"""What is chosen by name and lies in a folder of its kin: a new one is a new file there, and nothing else.

`amp/scoring/criteria/variance.py` is the criterion `variance`. The names are known without importing any of the files,
so that `--help` and mistakes in the settings answer at once. A file that begins with an underscore is a helper of its
kin; an underscore at the end keeps a name apart from Python's own words (`global_.py` is `global`).
"""

import ast
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any


class Registry:
    """The files of one package.

    Args:
        package: `amp.scoring.criteria`, for example.
        folder: of the package, where it lies outside of `amp`.
    """

    def __init__(self, package: str, folder: Path | None = None) -> None:
        self.package = package
        self._folder = folder or Path(__file__).parent.joinpath(*package.split(".")[1:])

    @cached_property
    def _files(self) -> dict[str, str]:
        stems = sorted(path.stem for path in self._folder.glob("*.py") if not path.stem.startswith("_"))
        return {stem.removesuffix("_"): stem for stem in stems}

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, sorted."""
        return tuple(self._files)

    def meaning(self, name: str) -> str:
        """The first line of its docstring, without importing it."""
        tree = ast.parse((self._folder / f"{self._files[name]}.py").read_text(encoding="utf-8"))
        return (ast.get_docstring(tree) or "").partition("\n")[0]

    def load(self, name: str) -> Any:
        """The module of that name, imported now."""
        return import_module(f"{self.package}.{self._files[name]}")


CRITERIA = Registry("amp.scoring.criteria")
FRAMES = Registry("amp.towers.frames")
LAYOUTS = Registry("amp.data.layouts")
SEARCHES = Registry("amp.pruning.search")
ALLOCATIONS = Registry("amp.pruning.allocation")
COMPENSATIONS = Registry("amp.pruning.refit")
COMMANDS = Registry("amp.commands")
EVALUATIONS = Registry("amp.commands.eval")
