"""The linear probe: what it finds, that the test images choose nothing, and every number of processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, refusal
from PIL import Image
from processes.threads import on_threads
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from amp.evaluation.probe import COARSE, fit_probe, probe_accuracies

SCRIPT = "eval/eval_probe.py"
MODEL = ["--model", GOLDEN / "tiny-clip.json", "--pretrained", GOLDEN / "tiny-clip.safetensors", "--num_workers", 0]


def clouds(count: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of three classes: points around three axes."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(count) % 3
    noise_ND = spread * torch.randn(count, 5, generator=generator)
    return torch.eye(5)[labels_N] + noise_ND, labels_N


def test_separable_classes_are_found() -> None:
    metrics, told = probe_accuracies([*clouds(60, 0.05)], [*clouds(30, 0.05, seed=1)])
    assert metrics == {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0}
    assert told["accuracy_held_out"] == 1.0


def test_the_test_images_have_no_say_in_the_regularisation() -> None:
    train, (features_VD, labels_V) = [*clouds(90, 0.9)], clouds(30, 0.9, seed=1)
    first, second = (probe_accuracies(train, [features_VD, labels]) for labels in (labels_V, labels_V.flip(0)))
    assert first[1] == second[1]
    assert first[0] != second[0]


def test_the_regularisation_is_the_best_on_training_images_held_out() -> None:
    features_ND, labels_N = clouds(90, 0.9)
    probe = fit_probe(features_ND, labels_N)
    held_out = torch.zeros(90, dtype=torch.bool)
    for label in range(3):
        held_out[torch.nonzero(labels_N == label)[3::4]] = True
    X, y = features_ND.double().numpy(), labels_N.numpy()
    own, rest = held_out.numpy(), ~held_out.numpy()

    def accuracy(C: float) -> float:
        model = LogisticRegression(C=C, max_iter=1000).fit(X[rest], y[rest])
        return float(model.score(X[own], y[own]))

    assert probe.accuracy == accuracy(probe.C) >= max(accuracy(10.0**decade) for decade in COARSE)
    whole = LogisticRegression(C=probe.C, max_iter=1000).fit(X, y)
    assert np.array_equal(probe.model.coef_, whole.coef_)


def test_too_few_images() -> None:
    features_ND, labels_N = clouds(9, 0.1)
    assert "no class has 4 training images" in refusal(lambda: fit_probe(features_ND, labels_N))
    assert "holds only one class" in refusal(lambda: fit_probe(features_ND, labels_N * 0))


def test_other_processes_are_told(tmp_path: Path) -> None:
    train, val = [*clouds(30, 0.5)], [*clouds(12, 0.5, seed=1)]
    one = probe_accuracies(train, val)

    def measure() -> Any:
        from amp.run.world import world

        return probe_accuracies(*((train, val) if world().is_main else ([], [])))

    assert on_threads(2, measure) == [one, one]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of eight images, dark and bright."""
    for label, name in enumerate(("dark", "bright")):
        for index in range(8):
            path = tmp_path / "pictures" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(10 * label + index).integers(0, 90, (32, 32, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["probe", "knn"])
def test_one_folder_of_classes_is_divided_aloud(tmp_path: Path, pictures: Path, call: Any, name: str) -> None:
    words = [*MODEL, "--dataset_root", pictures, "--output", tmp_path / "r.json"]
    code, out, err = call(f"eval/eval_{name}.py", *words)
    assert code == 0, err
    said = "has no train/: testing on 4 of 16 images, one in 4 of each class, not used for training"
    assert f"{pictures} {said}" in out
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["num_images"], record["num_train_images"], record["settings"]["held_out"]) == (4, 12, 4)
    assert record["metrics"]["acc1" if name == "probe" else "knn10"] == 1.0
    assert "already done" in call(f"eval/eval_{name}.py", *words)[1]
    code, _, err = call(f"eval/eval_{name}.py", *words, "--held_out", 2)
    assert (code, "held_out = 4, but this run has 2" in err) == (2, True)
    code, _, err = call(f"eval/eval_{'knn' if name == 'probe' else 'probe'}.py", *words)
    assert (code, "holds another run: r.json was made with task = " in err) == (2, True)


def test_mistakes_are_one_line(tmp_path: Path, pictures: Path, call: Any) -> None:
    for words, said in (
        (["--dataset_root", tmp_path / "none"], "--train_root: "),
        (["--dataset_root", pictures, "--held_out", 9], "--held_out: 9: no class of "),
        (
            ["--train_root", pictures, "--val_root", pictures, "--held_out", 3],
            "--held_out: not allowed with --train_root",
        ),
        (["--dataset_root", pictures / "dark"], "holds no class folder"),
    ):
        code, _, err = call(SCRIPT, *MODEL, *words, "--output", tmp_path / "r.json")
        assert (code, said in err.splitlines()[-1]) == (2, True), err
