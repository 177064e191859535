"""The house: packages stand in one order, three files know torch.distributed, and nothing grows large."""

import ast
import subprocess
from pathlib import Path

import pytest
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


def _imports(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(SOURCES)
            found |= submodules or {node.module}
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_packages_import_from_those_above_them(module: str) -> None:
    rows = {package: row for row, packages in enumerate(PACKAGES) for package in packages}
    own = _package(module)
    for imported in _imports(module):
        if imported.split(".")[0] in ("amp", "studies") and _package(imported) != own:
            # `amp` hands functions on, and imports them when they are asked for.
            assert rows[_package(imported)] < rows[own], f"{module} imports {imported}"


@pytest.mark.parametrize("module", [m for m in SOURCES if m not in DISTRIBUTED])
def test_only_three_files_know_torch_distributed(module: str) -> None:
    assert not any(name.startswith("torch.distributed") for name in _imports(module))


@pytest.mark.parametrize("module", SOURCES)
def test_files_and_functions_stay_small(module: str) -> None:
    text = SOURCES[module].read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


def test_files_of_tests_stay_small_too() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path


@pytest.mark.parametrize(
    "folder", sorted({path.parent for top in ("amp", "eval", "tests") for path in (ROOT / top).rglob("*.py")}), ids=str
)
def test_folders_stay_small(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 12


@pytest.mark.parametrize("module", [m for m in SOURCES if not m.startswith("amp.towers")])
def test_no_ladder_over_frames_outside_towers(module: str) -> None:
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Compare):
            assert "frame ==" not in ast.unparse(node)


@pytest.mark.parametrize("module", SOURCES)
def test_public_names_are_documented(module: str) -> None:
    tree = ast.parse(SOURCES[module].read_text())
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name != "main":
            small = isinstance(node, ast.ClassDef) and node.name.endswith("Settings")
            assert small or ast.get_docstring(node), f"{node.name} has no docstring"


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout
    return [ROOT / name for name in listed.split() if (ROOT / name).is_file()]


def test_files_speak_of_the_project_alone() -> None:
    for path in _tracked():
        if (path.suffix in (".py", ".md", ".yaml", ".toml") or path.name == "Makefile") and path != Path(__file__):
            text = path.read_text()
            for word in ("TODO", "FIXME", f"{ROOT}/"):
                assert word not in text, f"{path}: {word}"
