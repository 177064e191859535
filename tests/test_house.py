"""The house: data flows one way, one file knows torch.distributed, files and functions stay small."""

import ast
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

# A file may import only from rows above its own; no verb (row 12) imports another.
ROWS = [
    ["amp", "amp.errors", "amp.config", "amp.config_compare", "amp.config_distill"],
    ["amp.cli", "amp.criteria", "amp.distributed", "amp.optim", "amp.pace", "amp.runs", "amp.scenes"],
    ["amp.shards"],
    ["amp.search", "amp.racing", "amp.journal", "amp.mlp", "amp.data", "amp.training_state"],
    ["amp.activations", "amp.allocation"],
    ["amp.moments"],
    ["amp.compensation", "amp.reconstruction"],
    [
        "amp.towers.weights",
        "amp.towers.base",
        "amp.towers.open_clip",
        "amp.towers.eva_clip",
        "amp.towers.timm",
        "amp.towers.hf_inputs",
        "amp.towers.hf",
        "amp.towers.frames",
        "amp.towers.published",
        "amp.towers",
    ],
    ["amp.checkpoint.folder", "amp.checkpoint.published", "amp.checkpoint"],
    ["amp.replay", "amp.meter", "amp.candidates"],
    ["amp.placement", "amp.pair", "amp.scoring_state", "amp.validation", "amp.adaptive"],
    ["amp.sizing"],
    ["amp.scoring", "amp.pruning", "amp.distillation", "amp.memory", "amp.report"],
    ["amp.plan", "eval", "eval.layouts", "eval.paper", "eval.sharding"],
    [
        *("eval.benchmarks", "eval.classifiers", "eval.compare", "eval.compare_table", "eval.efficiency"),
        *("eval.knn", "eval.results", "eval.search_cost", "eval.step", "eval.zeroshot"),
    ],
    ["eval.validate"],
    [
        *("main_score", "main_prune", "distill", "amp.towers.__main__", "amp.checkpoint.__main__"),
        *("eval.eval_zsc", "eval.eval_knn", "eval.eval_efficiency", "eval.eval_speed", "eval.eval_step"),
        *("eval.eval_search_cost", "eval.eval_compare"),
        *("amp.demo", "amp.demo.__main__", "amp.demo.dense"),
    ],
]
# In these rooms a file stands on those before it, and the door on all.
ROOMS = [row for row in ROWS if {"amp.config", "amp.towers", "amp.checkpoint", "amp.candidates"} & set(row)]


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _sources() -> dict[str, Path]:
    files = [*ROOT.glob("*.py"), *(ROOT / "amp").rglob("*.py"), *(ROOT / "eval").rglob("*.py")]
    return {_module(path): path for path in sorted(files)}


SOURCES = _sources()


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = children & set(SOURCES)
            found |= submodules or {node.module}
    return found


def test_every_file_has_its_row() -> None:
    assert sorted(SOURCES) == sorted(module for row in ROWS for module in row)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_only_from_rows_above(module: str) -> None:
    row = next(i for i, modules in enumerate(ROWS) if module in modules)
    above = {m for modules in ROWS[:row] for m in modules}
    if ROWS[row] in ROOMS:
        above |= set(ROWS[row][: ROWS[row].index(module)])
    # `amp` hands load_pruned on, without importing it until it is asked for.
    own = {m for m in _imports(ast.parse(SOURCES[module].read_text())) if m.split(".")[0] in ("amp", "eval")}
    assert own - above <= ({"amp.checkpoint"} if module == "amp" else set())


@pytest.mark.parametrize("module", [m for m in SOURCES if m != "amp.distributed"])
def test_only_one_file_knows_torch_distributed(module: str) -> None:
    assert not any(name.startswith("torch.distributed") for name in _imports(ast.parse(SOURCES[module].read_text())))


@pytest.mark.parametrize("module", SOURCES)
def test_files_and_functions_stay_small(module: str) -> None:
    text = SOURCES[module].read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


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


def test_readme_maps_every_file() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in SOURCES.values():
        name = str(path.relative_to(ROOT))
        assert name.endswith("__init__.py") or f"`{name}`" in readme, f"{name} is not in the README's map"


def test_files_speak_of_the_project_alone() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.split()
    for name in tracked:
        if name.endswith((".py", ".md", ".yaml", ".toml", "Makefile")) and name != "tests/test_house.py":
            text = (ROOT / name).read_text()
            for word in ("TODO", "FIXME", f"{ROOT}/"):
                assert word not in text, f"{name}: {word}"
