"""The time of a step beside that of its parts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from studies.step import DISTILLATION, describe_times, ratio


def test_ratio_is_taken_within_each_round() -> None:
    seconds = {"step": [6.6, 12.0, 1.1], **{name: [2.0, 4.0, 1 / 3] for name in DISTILLATION}}
    assert ratio(seconds, DISTILLATION) == pytest.approx(1.1)
    assert "a step takes 1.100 of the time of its parts alone" in describe_times(seconds, DISTILLATION)


@pytest.mark.slow
def test_script_times_every_part_and_leaves_no_output(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = call("eval/eval_step.py", "--config_file", distill_yaml, "--num_rounds", "2")
    assert code == 0, err
    for name in ("step", *DISTILLATION, "of its parts alone"):
        assert name in out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_scoring_is_timed_without_weights_or_images(
    prune_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    words = ["--scoring", "--config_file", prune_yaml, "--num_rounds", "1"]
    code, out, err = call("eval/eval_step.py", *words, "--set", "data.root=nowhere")
    assert code == 0, err
    for name in ("step", "forward and backward", "of its parts alone"):
        assert name in out
    code, _, err = call("eval/eval_step.py", *words, "--set", "score.criterion=variance")
    assert (code, err.count("\n")) == (2, 1)
    assert "only entropy, kl, cross_entropy are timed" in err
