"""Moments that a scoring keeps: a refit of any size takes them in the place of the images, and finds the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.objects import equal, tiny_vit, weights_of
from safetensors.torch import load_file

import amp
from amp.pruning.refit import _compensation
from amp.statistics.moments import MomentCollector

RIDGE = {"criterion": "reconstruction", "allocation": "global", "compensation": "ridge"}


def _no_images(*args: Any, **words: Any) -> None:
    pytest.fail("moments were summed again")


@pytest.mark.slow
@pytest.mark.parametrize("compensation", ["ridge", "mean"])
def test_every_size_is_made_of_what_one_run_has_kept(compensation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    said: Any = {**RIDGE, "compensation": compensation}
    own = [amp.prune(tiny_vit(), images, params=size, **said) for size in (0.8, 0.6)]
    monkeypatch.setattr(_compensation, "MomentCollector", _no_images)
    kept = amp.prune(tiny_vit(), images, params=0.8, keep_moments=True, **said)
    for found, alone in zip((kept, kept.resize(params=0.6)), own, strict=True):
        assert equal(weights_of(found.model), weights_of(alone.model))


@pytest.mark.slow
def test_a_scoring_keeps_them_beside_its_scores(
    prune_yaml: Path, tmp_path: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["score.criterion=reconstruction", "prune.allocation=global", "prune.compensation=ridge"]
    settings += ["prune.target.params=0.7"]
    words = ["--config_file", prune_yaml, *(word for own in settings for word in ("--set", own))]
    out, keep = tmp_path / "out", ["--set", "score.keep_moments=true"]
    for more in ([], [*keep, "--set", f"output.dir={tmp_path}/kept"]):
        with monkeypatch.context() as patch:
            assert call("main_score.py", *words, *more)[0] == 0
            if more:
                patch.setattr(_compensation, "MomentCollector", _no_images)
            assert call("main_prune.py", *words, *more)[0] == 0
    alone, kept = (load_file(folder / "pruned" / "model.safetensors") for folder in (out, tmp_path / "kept"))
    for name, weight in alone.items():
        torch.testing.assert_close(kept[name], weight, rtol=1e-3, atol=1e-4, msg=name)
    # Other calibration images than those of the scoring are gone through.
    seen = []
    monkeypatch.setattr(_compensation, "MomentCollector", lambda *own: (seen.append(1), MomentCollector(*own))[1])
    fewer = [*keep, "--set", f"output.dir={tmp_path}/kept", "--set", "prune.num_calibration_samples=32"]
    assert call("main_prune.py", *words, *fewer)[0] == 0
    assert seen


def test_another_criterion_keeps_none(prune_yaml: Path, call: Callable[..., Any]) -> None:
    code, _, err = call("main_score.py", "--config_file", prune_yaml, "--set", "score.keep_moments=true")
    assert (code, "only reconstruction does" in err.splitlines()[-1]) == (2, True)
