"""`amp models`: the library is found by the name, and the model zoo's page says what is counted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from amp.commands._without_file import find_weights
from amp.commands._zoo import PAGE, ZOO, zoo_part
from amp.settings.model import ModelSettings
from amp.towers.library import library

BEFORE, *PARTS = (ROOT / "docs" / "models.md").read_text().rstrip("\n").split("\n\n## ")
Call = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "family"), list(enumerate(ZOO)))
def test_the_page_says_what_is_counted_of_sliced_models(number: int, family: str) -> None:
    """A part that differs is written anew by `amp models --zoo > docs/models.md`."""
    assert f"## {PARTS[number]}" == zoo_part(family)


def test_the_page_has_every_family_and_weights_that_its_library_names() -> None:
    assert (BEFORE, len(PARTS)) == (PAGE, len(ZOO))
    for frame, name, weights in (model for models in ZOO.values() for model in models):
        own = library(frame)
        assert own.knows(name)
        assert find_weights(ModelSettings(name=name, pretrained=weights), frame) in own.tags(name)


@pytest.mark.slow
def test_models_and_export_find_the_library_by_the_name(call: Call, tmp_path: Path) -> None:
    for name, frame in (("vit_tiny_patch16_224", "timm"), ("timm/vit_tiny_patch16_224", "timm")):
        code, out, err = call("amp/towers/__main__.py", name)
        assert (code, f"vit_tiny_patch16_224 ({frame})" in out) == (0, True), err
    code, _, err = call("amp/towers/__main__.py", "vit_tiny_patch16_225")
    assert (code, "did you mean 'vit_tiny_patch16_224'" in err) == (2, True)
    code, _, err = call("amp/towers/__main__.py", "vit_tiny_patch16_224", "--model_type", "open_clip")
    assert (code, "vit_tiny_patch16_224" in err) == (2, True)
