"""Laws of the warnings: too few held-out batches are told, before a search and after it, and enough are not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import refusal

from amp.pruning.blocks import WidthsFound
from amp.pruning.doubt import warn_of_doubt, warn_of_few
from amp.pruning.widths import check_widths
from amp.settings.prune import PruneDataSettings, SearchSettings
from amp.towers import Tower

DATA = PruneDataSettings(name="imagefolder", root="images", batch_size=32)
Call = Callable[..., tuple[int, str, str]]


def warned(capsys: pytest.CaptureFixture[str], widths: list[int], errors: list[float | None], batches: int) -> str:
    found = WidthsFound(widths, 1e-2, standard_errors=errors)
    warn_of_doubt(found, [768] * len(widths), batches, DATA)
    says = capsys.readouterr().err
    assert says.count("\n") == bool(says)
    return says


def test_a_standard_error_above_the_threshold_says_how_many_images_would_tell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    says = warned(capsys, [700, 14], [0.004, 0.04], 2)
    assert says.startswith(
        "warning: data.num_val_samples: for 1 of 2 pruned blocks, the measured increase of entropy is uncertain "
        "by up to 0.04"
    )
    assert "prune.entropy_increase (0.01); about 1024 held-out images are needed" in says
    assert "block 1 keeps only 14 of 768 neurons" in says
    assert "keeps" not in warned(capsys, [700, 400], [0.004, 0.04], 2)


def test_a_collapse_is_told_where_few_batches_decided(capsys: pytest.CaptureFixture[str]) -> None:
    assert "block 0 keeps only 14 of 768 neurons" in warned(capsys, [14, 700], [None, 0.001], 2)
    assert not warned(capsys, [14, 700], [0.001, 0.001], 8)
    assert not warned(capsys, [100, 700], [0.001, 0.001], 2)


def test_few_batches_are_told_before_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_few(2, DATA)
    says = capsys.readouterr().err
    assert says.startswith("warning: data.num_val_samples: only 2 held-out batches of 32 images decide the widths; ")
    assert "256 held-out images or more" in says
    warn_of_few(8, DATA)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            {"width_multiple": 1000},
            "prune.width_multiple: 1000 is more than the 256 neurons of the widest block",
        ),
        ({"min_width": 256}, "prune.min_width: 256: no block can be narrowed"),
        (
            {"width_multiple": 256, "allocation": "uniform", "target": {"params": 0.5}},
            "prune.width_multiple: 256: no block can be narrowed; the widest has 256 neurons",
        ),
    ],
)
def test_a_grid_without_a_smaller_width_is_refused(tower: Tower, setting: dict[str, object], says: str) -> None:
    assert refusal(lambda: check_widths(tower, SearchSettings.model_validate(setting))).startswith(says)


@pytest.mark.slow
def test_a_search_on_two_batches_warns_and_records_its_standard_errors(
    scored: Path, prune_yaml: Path, call: Call
) -> None:
    code, _, err = call("main_prune.py", "--config_file", prune_yaml, "--set", "prune.search_steps=2")
    assert code == 0
    assert "warning: data.num_val_samples: only 2 held-out batches of 32 images decide" in err
    record = json.loads((scored / "prune.json").read_text())
    assert len(record["standard_errors"]) == sum(width < 256 for width in record["widths"]) > 0
    assert min(record["standard_errors"]) > 0
