"""Random damage of every artifact and random values of every setting: the right result, or one line and exit code 2.

`AMP_FUZZ_EXAMPLES=2000 python -m pytest tests/test_fuzz.py` looks longer, and from another seed each time.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from processes.small_run import DISTIL, PRUNE, SCORE, STEPS, Ended, inputs, results, run_in

from amp.settings.distill import DistillConfig
from amp.settings.prune import PruneConfig
from amp.settings.reading.meanings import settings_of

EXAMPLES = int(os.environ.get("AMP_FUZZ_EXAMPLES", "0"))
PROGRESS = re.compile(r"[^:]+: \d+ of \d+ \w+, \d+%")
pytestmark = pytest.mark.slow


def fuzz(examples: int) -> Any:
    """A seeded property, unless more examples are asked for."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )


@pytest.fixture(scope="module")
def stopped(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run before its ends are written: a search with its journal, a distillation with its checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    shutil.copytree(whole, folder)
    (folder / "out" / "prune.json").unlink()
    shutil.rmtree(folder / "out" / "distilled")
    (folder / "knn.json").unlink()
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where an example takes place."""
    return tmp_path / "place"


def artifacts(folder: Path) -> list[str]:
    """What the run has written, without pictures and TensorBoard, which nothing reads."""
    paths = [path for path in (folder / "out").rglob("*") if path.is_file()] + list(folder.glob("knn.json"))
    named = sorted(str(path.relative_to(folder)) for path in paths)
    return [name for name in named if "tensorboard" not in name and not name.endswith(".png")]


WEIRD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(
        ["", "x", "nan", "1e400", "é", "a\nb", "a/../b", "\0", "y" * 300, "2024-13-45", "!!int foo", "{c.x}"]
    ),
    st.lists(st.integers(-2, 60), max_size=3),
    st.dictionaries(st.sampled_from(["params", "img_size", "mean", "x"]), st.floats(-1, 2), max_size=2),
)


def damage(path: Path, kind: str, data: st.DataObject, others: list[Path]) -> None:
    """One kind of damage of a file."""
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "swap":
        path.write_bytes(data.draw(st.sampled_from(others)).read_bytes())
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "retype" and path.suffix in (".json", ".jsonl"):
        lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
        number = data.draw(st.integers(0, len(lines) - 1))
        value = json.loads(lines[number])
        group, key = value, data.draw(st.sampled_from(sorted(value)))
        while isinstance(group[key], dict) and group[key] and data.draw(st.booleans()):
            group, key = group[key], data.draw(st.sampled_from(sorted(group[key])))
        group[key] = data.draw(WEIRD)
        lines[number] = json.dumps(value)
        path.write_text("\n".join(lines) + "\n")
    elif kind == "cut" or not content:
        path.write_bytes(content[: data.draw(st.integers(0, max(0, len(content) - 1)))])
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)


def check_line(ended: Ended, said: str) -> None:
    """One line that names what is wrong, after warnings and progress."""
    assert ended.code == 2, f"{said}: exit code {ended.code}: {ended.err}"
    *before, last = ended.err.splitlines()
    assert last.startswith("error: "), f"{said}: {ended.err}"
    assert not last.startswith(("error: :", "error: None")), f"{said}: {ended.err}"
    assert all(line.startswith("warning: ") or PROGRESS.match(line) for line in before), f"{said}: {ended.err}"


@pytest.mark.parametrize("state", ["whole", "stopped"])
@fuzz(examples=12)
@given(data=st.data())
def test_damage_is_mended_or_named(
    state: str, data: st.DataObject, request: pytest.FixtureRequest, place: Path
) -> None:
    source, right = request.getfixturevalue(state), results(request.getfixturevalue("whole"))
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)
    name = data.draw(st.sampled_from(artifacts(source)), label="file")
    kind = data.draw(st.sampled_from(["flip", "flip", "cut", "delete", "swap", "retype", "folder"]), label="damage")
    damage(place / name, kind, data, [place / other for other in artifacts(source)])
    before = inputs(place)
    for words in STEPS:
        ended = run_in(place, *words)
        said = f"{kind} of {name}, then {words[0]}"
        assert inputs(place) == before, f"{said}: an input has changed"
        if ended.code != 0:
            check_line(ended, said)
            return
    assert results(place) == right, f"{kind} of {name}: another result"


def settings_to_try() -> st.SearchStrategy[tuple[tuple[str, ...], str, Any]]:
    """(script, key, value) of any setting."""
    of_prune = [(words, key) for words in (SCORE, PRUNE) for key, _, _ in settings_of(PruneConfig)]
    of_distil = [(DISTIL, key) for key, _, _ in settings_of(DistillConfig)]
    pairs = st.sampled_from([*of_prune, *of_distil])
    return st.tuples(pairs, WEIRD).map(lambda drawn: (*drawn[0], drawn[1]))


@fuzz(examples=60)
@example(drawn=(SCORE, "data.seed", 2**63))
@example(drawn=(DISTIL, "data.augment", "\0"))
@given(drawn=settings_to_try())
def test_any_value_of_a_setting_is_right_or_refused(drawn: tuple[Any, str, Any], whole: Path, place: Path) -> None:
    words, key, value = drawn
    if key in ("data.num_workers", "output.dir"):
        return  # processes without number; a folder anywhere
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    for output in ("scores.safetensors",) if words is SCORE else ("prune.json",) if words is PRUNE else ("distilled",):
        path = place / "out" / output
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = inputs(place)
    ended = run_in(place, *words, "--set", f"{key}={json.dumps(value)}")
    assert inputs(place) == before
    if ended.code != 0:
        check_line(ended, f"{key}={value!r} of {words[0]}")
