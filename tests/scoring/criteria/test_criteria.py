"""Laws of every criterion: what it has, what it costs, and what it refuses.

H hidden width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from helpers.gates import random_batches
from torch import Tensor

from amp.registry import CRITERIA
from amp.scoring.criterion import Load, load_criterion, reads_images, score
from amp.settings.score import ScoreSettings
from amp.towers import Tower

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
@pytest.mark.parametrize("name", CRITERIA.names)
def test_each_says_what_it_is_and_what_it_takes(name: str, meta: Tower) -> None:
    criterion = load_criterion(name)
    assert criterion.__doc__
    assert criterion.score.__doc__
    assert all(most(Load(meta, 4, 2, 80.0)) > 0 for most in criterion.PASSES.values())
    without = ("diversity", "magnitude", "random")
    assert reads_images(ScoreSettings(criterion=name, classes=("a", "b"))) == (name not in without)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["variance", "magnitude", "diversity", "random"])
def test_these_take_no_backward_pass(tower: Tower, criterion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "backward", lambda *_: pytest.fail("a backward pass"))
    ran = []
    handle = tower.visual.register_forward_hook(lambda *_: ran.append(1))
    scores = score(tower, random_batches(), ScoreSettings(criterion=criterion))
    handle.remove()
    assert len(ran) == (2 if criterion == "variance" else 0)
    assert [(score_H.shape, score_H.dtype) for score_H in scores] == [((256,), torch.float32)] * 5
    assert not any(module._forward_pre_hooks for module in tower.model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["entropy", "kl", "reconstruction", "variance"])
def test_activations_that_are_not_finite_are_one_line(tower: Tower, criterion: Any) -> None:
    tower.slots[0].out_projection.bias.fill_(torch.inf)
    message = refusal(lambda: score(tower, random_batches(), ScoreSettings(criterion=criterion)))
    assert message.startswith("score.criterion: ")
    assert "model.precision: fp32" in message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["score.criterion=cross_entropy"], "score: classes: missing"),
        (["score.criterion=cross_entropy", "score.classes=[a]"], "score.classes"),
        (["score.template=a photo"], "template: 'a photo': must contain {c}"),
        (
            ["score.criterion=cross_entropy", "score.classes=[a, b]", "score.labels=folders"],
            "score.labels: folders: ROOT holds images in 1 folders, but score.classes names 2",
        ),
        (["score.labels=true"], "score.labels"),
        (
            ["score.criterion=hessian"],
            "'cross_entropy', 'diversity', 'entropy', 'kl', 'magnitude'",
        ),
    ],
)
def test_mistakes_are_one_line(
    prune_yaml: Path, golden_images: Path, tmp_path: Path, call: Call, words: list[str], says: str
) -> None:
    settings = [word for override in words for word in ("--set", override)]
    code, _, err = call("main_score.py", "--config_file", prune_yaml, *settings)
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert says.replace("ROOT", str(golden_images)) in line
    assert not (tmp_path / "out").exists()
