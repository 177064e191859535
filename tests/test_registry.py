"""Laws of the registries: names are files, known without importing them; each means something."""

import subprocess
import sys
from typing import get_args

import pytest

from amp import registry
from amp.registry import Registry
from amp.settings.model import Frame
from amp.settings.score import Criterion

ALL = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}


@pytest.mark.parametrize("kind", ALL)
def test_every_word_is_a_file_that_says_what_it_means(kind: str) -> None:
    assert ALL[kind].names == tuple(sorted(ALL[kind].names))
    for name in ALL[kind].names:
        assert ALL[kind].load(name).__name__.removesuffix("_") == f"{ALL[kind].package}.{name}"
        assert ALL[kind].meaning(name).strip()


def test_settings_take_their_words_from_them() -> None:
    assert get_args(Criterion) == registry.CRITERIA.names
    assert get_args(Frame) == registry.FRAMES.names


def test_names_are_known_without_importing_anything() -> None:
    code = (
        "import sys; from amp.settings.prune import PruneConfig; print(sorted(m for m in sys.modules if 'torch' in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
