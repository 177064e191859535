"""A linear probe: how well a logistic regression on a tower's features tells the classes, over any number of processes.

As in CLIP (arXiv 2103.00020, A.3): L-BFGS, at most 1000 iterations, and the inverse regularisation C that is best on a
part of the training images, searched from 1e-6 to 1e6 in coarse steps and then halved to eight steps a decade; the test
images have no say in it. Features have length 1, as in DINOv2's logistic regression. The numbers do not depend on the
number of processes: the main process fits all.

Shapes: N training images, V test images, C classes, D width of a feature, K most likely classes.
"""

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from amp.errors import UserError
from amp.evaluation.accuracy import Metrics, accuracies
from amp.evaluation.knn import Featurizer
from amp.evaluation.options import ProbeOptions
from amp.evaluation.readers.class_folders import HELD_OUT_EVERY
from amp.evaluation.readers.folders import open_divided
from amp.evaluation.results import Evaluation, Look, open_divided_evaluation
from amp.run.console import progress, say
from amp.run.world import world
from amp.towers import Tower

COARSE = tuple(range(-6, 7, 2))  # decades of C that are tried first
FINEST = 1 / 8  # of a decade
ITERATIONS = 1000


@dataclass(frozen=True)
class Probe:
    """A logistic regression, and how it was found.

    Attributes:
        model: scikit-learn's, of all training images.
        C: its inverse regularisation.
        accuracy: share of the training images held out for the choice of C whose class it told.
        converged: whether the last fit did, in ITERATIONS.
    """

    model: Any
    C: float
    accuracy: float
    converged: bool

    def metrics(self, features_VD: Tensor, labels_V: Tensor) -> Metrics:
        """As of `amp.evaluation.accuracy.accuracies`."""
        scores_VC = torch.from_numpy(self.model.predict_log_proba(features_VD.double().numpy()))
        top_VK = scores_VC.topk(min(5, scores_VC.shape[1])).indices
        return accuracies(scores_VC.argmax(dim=1), top_VK, labels_V)


def fit_probe(features_ND: Tensor, labels_N: Tensor, option: str = "--train_root") -> Probe:
    """The probe of training images; C is the best on every fourth image of each class, held out, the least of equals.

    Args:
        features_ND: fp32, on the CPU.
        labels_N: int64, from 0, of every class at least one.
        option: that named the images, for messages.
    Raises:
        UserError: one class alone, or too few images to hold any out.
    """
    X, y = features_ND.double().numpy(), labels_N.numpy()
    held_out = held_out_images(y, option)
    found: dict[float, float] = {}

    def judge(decades: list[float]) -> None:
        for decade in progress([d for d in decades if d not in found and -6 <= d <= 6], "linear probe", "fit"):
            model, _ = _fit(X[~held_out], y[~held_out], decade)
            found[decade] = float((model.predict(X[held_out]) == y[held_out]).mean())

    judge([*map(float, COARSE)])
    step = float(COARSE[1] - COARSE[0])
    while step > FINEST:
        step /= 2
        best = _best(found)
        judge([best - step, best + step])
    best = _best(found)
    model, converged = _fit(X, y, best)
    return Probe(model, 10.0**best, found[best], converged)


def _best(found: dict[float, float]) -> float:
    return min(found, key=lambda decade: (-found[decade], decade))


def held_out_images(labels_N: np.ndarray, option: str = "--train_root") -> np.ndarray:
    """Whether each training image is held out for the choice of C: every fourth one of a class.

    Raises:
        UserError: one class alone, or too few images to hold any out.
    """
    chosen = np.zeros(len(labels_N), bool)
    classes = np.unique(labels_N)
    for label in classes:
        chosen[np.flatnonzero(labels_N == label)[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
    if len(classes) < 2:
        raise UserError(option, "holds only one class; a linear probe needs at least two")
    if not chosen.any():
        raise UserError(
            option,
            f"no class has {HELD_OUT_EVERY} training images, which a linear probe needs to choose its regularisation",
        )
    return chosen


def _fit(X: np.ndarray, y: np.ndarray, decade: float) -> tuple[Any, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=10.0**decade, max_iter=ITERATIONS).fit(X, y)
    return model, bool(model.n_iter_.max() < ITERATIONS)


def probe_accuracies(of_train: list[Tensor], of_val: list[Tensor]) -> tuple[Metrics, dict[str, Any]]:
    """The metrics on the test images, and `{C, accuracy_held_out, converged}`, on every process.

    Args:
        of_train, of_val: features and labels, as `Featurizer.features` gives them.
    """

    def measure() -> tuple[Metrics, dict[str, Any]]:
        train_ND, train_N = of_train
        probe = fit_probe(train_ND, train_N)
        if not probe.converged:
            say(f"note: the linear probe did not converge in {ITERATIONS} iterations, the limit that CLIP uses")
        told = {"C": probe.C, "accuracy_held_out": probe.accuracy, "converged": probe.converged}
        return probe.metrics(*of_val), told

    return world().from_main(measure)


def open_probe(options: ProbeOptions) -> Evaluation[ProbeOptions]:
    """The evaluation; nothing is measured. Raises UserError where its file cannot be written."""
    return open_divided_evaluation(options, "probe", ("scikit-learn",), task="probe")


def measure_probe(run: Evaluation[ProbeOptions], tower: Tower, look: Look | None = None) -> dict[str, Any]:
    """The record, which is written: `{metrics, C, num_images, num_train_images, seconds, ...}`."""
    options = run.config
    train, val = open_divided(options.train_root, options.val_root, options.held_out, tower.transform)
    if look:
        look(tower, (train, val))
    started = time.monotonic()
    featurizer = Featurizer(tower, options.batch_size, options.num_workers)
    metrics, told = probe_accuracies(featurizer.features(train, "train"), featurizer.features(val, "val"))
    record = {
        "model": options.model,
        "pretrained": options.pretrained,
        "metrics": metrics,
        **told,
        "num_images": len(val),
        "num_train_images": len(train),
        "seconds": round(time.monotonic() - started, 2),
    }
    return run.write(run.name, record)
