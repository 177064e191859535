"""Moments that a scoring keeps: a refit of any size takes them in the place of the images, and finds the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.objects import equal, tiny_vit, weights_of

import amp
from amp.pruning.refit import _compensation
from amp.statistics.moments import MomentCollector


def _no_images(*args: Any, **words: Any) -> None:
    pytest.fail("moments were summed again")


@pytest.mark.slow
def test_every_size_is_made_of_what_one_run_has_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    said: Any = {"criterion": "reconstruction", "allocation": "global"}
    alone = amp.prune(tiny_vit(), images, params=0.8, compensation="ridge", **said)
    smaller = alone.resize(params=0.6)
    monkeypatch.setattr(_compensation, "MomentCollector", _no_images)
    kept = amp.prune(tiny_vit(), images, params=0.8, compensation="none", keep_moments=True, **said)
    for size, own in ((0.8, alone), (0.6, smaller)):
        found = kept.resize(params=size, compensation="ridge")
        assert equal(weights_of(found.model), weights_of(own.model))
        for key in ("dense_entropy", "final_entropy", "feature_cosine"):
            assert found.report.record[key] == own.report.record[key]


@pytest.mark.slow
def test_a_scoring_keeps_them_beside_its_scores(
    prune_yaml: Path, tmp_path: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["score.criterion=reconstruction", "score.keep_moments=true", "prune.allocation=global"]
    settings += ["prune.compensation=ridge", "prune.target.params=0.7"]
    words = ["--config_file", prune_yaml, *(word for own in settings for word in ("--set", own))]
    assert call("main_score.py", *words)[0] == 0
    assert len(list((tmp_path / "out" / "moments").iterdir())) == 5
    with monkeypatch.context() as patch:
        patch.setattr(_compensation, "MomentCollector", _no_images)
        assert call("main_prune.py", *words)[0] == 0
    # Other calibration images than those of the scoring are gone through.
    seen = []
    monkeypatch.setattr(
        _compensation, "MomentCollector", lambda *own, **words: (seen.append(1), MomentCollector(*own, **words))[1]
    )
    assert call("main_prune.py", *words, "--set", "prune.num_calibration_samples=32")[0] == 0
    assert seen
    # Of moments that are not whole both commands say so.
    (tmp_path / "out" / "moments" / "block_0.safetensors").unlink()
    for script, said in (("score", "to redo both, delete scores.safetensors"), ("prune", "reads images instead")):
        code, out, _ = call(f"main_{script}.py", *words, "--set", "prune.target.params=0.8")
        assert (code, f"moments is incomplete or from another scoring; {said}" in out.replace("the refit ", "")) == (
            0,
            True,
        )


def test_another_criterion_keeps_none(prune_yaml: Path, call: Callable[..., Any]) -> None:
    code, _, err = call("main_score.py", "--config_file", prune_yaml, "--set", "score.keep_moments=true")
    assert (code, "only reconstruction does" in err.splitlines()[-1]) == (2, True)
