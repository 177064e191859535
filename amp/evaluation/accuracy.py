"""The share of images whose class is told.

Shapes: B images, K most likely classes.
"""

import warnings

from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

Metrics = dict[str, float | None]


def accuracies(pred_B: Tensor, top_BK: Tensor, label_B: Tensor) -> Metrics:
    """`{acc1, acc5, mean_per_class_recall}`; acc5 is None below five classes.

    Args:
        pred_B: the class that is told.
        top_BK: the K most likely classes, first to last; 5, or all where there are fewer.
        label_B: the class that it is.
    """
    hits_BK = top_BK == label_B[:, None]
    with warnings.catch_warnings():
        # It warns of few images a class, and of predicted classes without an image.
        warnings.simplefilter("ignore", UserWarning)
        recall = float(balanced_accuracy_score(label_B.numpy(), pred_B.numpy()))
    return {
        "acc1": hits_BK[:, 0].sum().item() / len(label_B),
        "acc5": hits_BK.sum().item() / len(label_B) if top_BK.shape[1] == 5 else None,
        "mean_per_class_recall": recall,
    }
