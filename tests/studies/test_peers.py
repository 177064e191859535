"""Other libraries and methods in a comparison: equal sizes, their reasons, tests on one's own images."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from studies.compare import Trial
from studies.methods import METHODS, load_method
from studies.methods.osscar import choose

from amp.models.sizes import count_params
from amp.settings.compare import CompareConfig, PeerSettings

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


def paint(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    """Of a timm model with random weights on one's own images."""
    paint(tmp_path / "images/train", 64, 0)
    paint(tmp_path / "images/val", 32, 1)
    for label, name in enumerate("abc"):
        paint(tmp_path / "tested" / name, 4, 2 + label)
    return {
        "model": {
            "frame": "timm",
            "name": "vit_tiny_patch16_224",
            "kwargs": {"img_size": 32, "patch_size": 8, "num_classes": 0, "depth": 2, "embed_dim": 48, "num_heads": 2},
        },
        "data": {
            "name": "imagefolder",
            "root": str(tmp_path / "images"),
            "batch_size": 32,
            "num_samples": 64,
            "num_val_samples": 32,
            "num_workers": 0,
        },
        "test": {"root": str(tmp_path / "tested")},
        "compare": {"sizes": (0.8,), "seeds": (0,)},
        "output": {"dir": str(tmp_path / "out")},
    }


@pytest.fixture
def trial(settings: dict[str, object]) -> Trial:
    rows = {"rows": {"random": {"criterion": "random", "allocation": "uniform"}}}
    return Trial(CompareConfig.model_validate({**settings, **rows}), 0)


@pytest.mark.parametrize("method", ["grail", "osscar", "snapvit"])
def test_own_methods_meet_the_size(trial: Trial, method: str) -> None:
    tower = load_method(method).prune(trial, PeerSettings(method=method), 0.8)
    assert count_params(tower) / trial.num_params == pytest.approx(0.8, rel=0.02)
    assert tower.feature(trial.held_out_images[0]).isfinite().all()


@pytest.mark.parametrize(
    ("method", "importance", "scope"),
    [
        ("torch_pruning", "magnitude", "mlp"),
        ("torch_pruning", "taylor", "whole"),
        ("torch_kirigami", "taylor", "mlp"),
        ("torch_kirigami", "taylor", "whole"),
    ],
)
def test_libraries_meet_the_size(trial: Trial, method: str, importance: str, scope: str) -> None:
    pytest.importorskip(method)
    own = PeerSettings.model_validate(
        {"method": method, "importance": importance, "scope": scope, "groups": "isomorphic"}
    )
    if (method, scope) == ("torch_kirigami", "whole"):
        with pytest.raises(ValueError, match="hours"):
            load_method(method).prune(trial, own, 0.8)
        return
    tower = load_method(method).prune(trial, own, 0.8)
    assert count_params(tower) / trial.num_params == pytest.approx(0.8, rel=0.02)
    images_BCSS = trial.held_out_images[0]
    assert tower.feature(images_BCSS).shape == trial.dense.feature(images_BCSS).shape
    assert (scope == "mlp") == (tower.slots[0].in_projections[0].in_features == 48)


def test_swaps_find_the_neurons_that_the_others_cannot_stand_in_for() -> None:
    """Two of the six neurons carry all of the output, the others are mixtures of those with noise."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    hidden_NH[:, :4] = hidden_NH[:, 4:] @ torch.randn(2, 4, generator=generator).double() + 0.1 * hidden_NH[:, :4]
    weight_DH = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    covariance_HH = hidden_NH.T.cov(correction=0)

    def left(kept: list[int]) -> float:
        damped_HH = covariance_HH + 1e-3 * covariance_HH.diagonal().mean() * torch.eye(6)
        solved_KH = torch.linalg.solve(damped_HH[kept][:, kept], damped_HH[kept])
        return float(torch.trace(weight_DH @ (damped_HH - damped_HH[:, kept] @ solved_KH) @ weight_DH.T))

    found = choose(covariance_HH, weight_DH, 3).tolist()
    pairs = [[a, b, c] for a in range(6) for b in range(a + 1, 6) for c in range(b + 1, 6)]
    assert left(found) == pytest.approx(min(map(left, pairs)), rel=0.05)
    assert left(found) <= left(choose(covariance_HH, weight_DH, 3, swaps=0).tolist()) * (1 + 1e-9)


def test_a_table_with_peers_that_run_that_fail_and_that_are_missing(
    settings: dict[str, object], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, absent = ModuleType("studies.methods.fake"), ModuleType("studies.methods.absent")
    fake.NEEDS, absent.NEEDS = {}, {"no_such_package": "no-such-package"}  # type: ignore[attr-defined]

    def fails(trial: Trial, settings: PeerSettings, size: float) -> None:
        raise RuntimeError("shape '[2, 3]' is invalid\nmore of it")

    fake.prune = fails  # type: ignore[attr-defined]
    for name, module in (("fake", fake), ("absent", absent)):
        monkeypatch.setitem(sys.modules, f"studies.methods.{name}", module)
    monkeypatch.setattr(METHODS, "_files", {**METHODS._files, "fake": "fake", "absent": "absent"})

    save_file({"classifier": torch.randn(48, 4)}, tmp_path / "text.safetensors")
    (tmp_path / "names.txt").write_text("c\nb\nz\na\n")
    texts = {"text_features": str(tmp_path / "text.safetensors"), "text_classes": str(tmp_path / "names.txt")}
    peers = {name: {"method": name} for name in ("grail", "fake", "absent")}
    for test in (texts, {"neighbours": str(tmp_path / "tested")}):
        own = {**settings, "test": {**settings["test"], **test}, "peers": peers}  # type: ignore[dict-item]
        own["output"] = {"dir": str(tmp_path / f"out_{len(test)}")}
        (tmp_path / "config.yaml").write_text(json.dumps(own))
        code, _, err = call("eval/eval_compare.py", "--config_file", str(tmp_path / "config.yaml"))
        assert code == 0, err
        table = (tmp_path / f"out_{len(test)}/compare.md").read_text()
        cells = {
            line.split("|")[1].strip(): line.split("|")[3].strip() for line in table.splitlines() if line[:1] == "|"
        }
        assert cells["fake"] == cells["absent"] == "-"
        assert 0 <= float(cells["grail"]) <= 1
        assert "- fake, at 0.8: shape '[2, 3]' is invalid" in table
        assert "- absent, at 0.8: needs: pip install no-such-package" in table
