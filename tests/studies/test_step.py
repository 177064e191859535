"""The time of a distillation step beside that of its parts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from studies.step import PARTS, describe_times, ratio


def test_ratio_is_taken_within_each_round() -> None:
    seconds = {"step": [6.6, 12.0, 1.1], **{name: [2.0, 4.0, 1 / 3] for name in PARTS}}
    assert ratio(seconds) == pytest.approx(1.1)
    assert "a step takes 1.100 of its parts alone" in describe_times(seconds)


@pytest.mark.slow
def test_script_times_every_part_and_leaves_no_output(
    distill_yaml: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = call("eval/eval_step.py", "--config_file", distill_yaml, "--num_rounds", "2")
    assert code == 0, err
    for name in ("step", *PARTS, "of its parts alone"):
        assert name in out
    assert not (tmp_path / "out").exists()
