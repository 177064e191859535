"""The house: packages stand in one order, three files know torch.distributed, and nothing grows large."""

import ast
import subprocess
from pathlib import Path

from conftest import ROOT

# A package imports from those above it; those of one row do not import each other.
PACKAGES = [
    {"amp.errors", "amp.registry", "amp.version"},
    {"amp.settings"},
    {"amp.run"},
    {"amp.data"},
    {"amp.towers"},
    {"amp.models"},
    {"amp.statistics", "amp.export"},
    {"amp.evaluation"},
    {"amp.scoring", "amp.pruning", "amp.distillation"},
    {"amp.api"},
    {"amp"},
    {"amp.demo"},
    {"amp.commands"},
    {"studies"},
    {"scripts"},
]


DISTRIBUTED = ("amp.run.world", "amp.run.saving", "amp.run.processes.together")


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT / "eval" if path.is_relative_to(ROOT / "eval") else ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _package(module: str) -> str:
    if module in ("amp.__main__", "amp.towers.__main__", "amp.settings.__main__", "amp.checkpoint"):
        return "amp.commands"  # They are the names that these commands are called by.
    if not module.startswith(("amp", "studies")):
        return "scripts"
    return ".".join(module.split(".")[: 1 if module.startswith("studies") else 2])


SOURCES = {
    _module(path): path
    for path in sorted([*ROOT.glob("*.py"), *(ROOT / "amp").rglob("*.py"), *(ROOT / "eval").rglob("*.py")])
}


TEXTS = {module: path.read_text() for module, path in SOURCES.items()}
TREES = {module: ast.parse(text) for module, text in TEXTS.items()}


def _imports(module: str) -> set[str]:
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(SOURCES)
            found |= submodules or {node.module}
    return found


def test_packages_import_from_those_above_them() -> None:
    rows = {package: row for row, packages in enumerate(PACKAGES) for package in packages}
    wrong = [
        f"{module} imports {imported}"
        for module in SOURCES
        for imported in _imports(module)
        # `amp` hands functions on, and imports them when they are asked for.
        if imported.split(".")[0] in ("amp", "studies")
        and _package(imported) != _package(module)
        and rows[_package(imported)] >= rows[_package(module)]
    ]
    assert wrong == []


def test_only_three_files_know_torch_distributed() -> None:
    knowing = {m for m in SOURCES if any(name.startswith("torch.distributed") for name in _imports(m))}
    assert knowing <= {*DISTRIBUTED}


def test_files_and_functions_stay_small() -> None:
    tests = {str(path): path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    long = [name for name, text in (TEXTS | tests).items() if len(text.splitlines()) > 300]
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= 60:
                    long.append(f"{module}.{node.name}")
    assert long == []


def test_folders_stay_small() -> None:
    folders = {path.parent for top in ("amp", "eval", "tests") for path in (ROOT / top).rglob("*.py")}
    assert [str(folder) for folder in folders if len(list(folder.glob("*.py"))) > 12] == []


def test_no_ladder_over_frames_outside_towers() -> None:
    wrong = [
        module
        for module, tree in TREES.items()
        if not module.startswith("amp.towers") and "frame ==" in TEXTS[module]
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and "frame ==" in ast.unparse(node)
    ]
    assert wrong == []


def test_public_names_are_documented() -> None:
    silent = [
        f"{module}.{node.name}"
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name != "main"
        if not (isinstance(node, ast.ClassDef) and node.name.endswith("Settings")) and not ast.get_docstring(node)
    ]
    assert silent == []


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout
    return [ROOT / name for name in listed.split() if (ROOT / name).is_file()]


def test_files_speak_of_the_project_alone() -> None:
    for path in _tracked():
        if (path.suffix in (".py", ".md", ".yaml", ".toml") or path.name == "Makefile") and path != Path(__file__):
            text = path.read_text()
            for word in ("TODO", "FIXME", f"{ROOT}/"):
                assert word not in text, f"{path}: {word}"
