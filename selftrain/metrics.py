"""How good a classifier is, from logits and labels.

Evaluators return plain numbers by name; scikit-learn computes what it offers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LabelArray = npt.NDArray[np.int8]


def macro_f1(labels: LabelArray, predicted: LabelArray) -> float:
    """Mean of the two classes' F1, in [0, 1]; a class that is neither there nor predicted counts as 0.

    Written out because training asks for it hundreds of times a second.
    """
    f1 = []
    for value in (0, 1):
        hits = int(((labels == value) & (predicted == value)).sum())
        seen = int((labels == value).sum()) + int((predicted == value).sum())
        f1.append(2 * hits / seen if seen else 0.0)
    return (f1[0] + f1[1]) / 2


def evaluate(labels: LabelArray, logits: npt.NDArray[np.float32]) -> dict[str, float | int]:
    """Metrics of calibrated logits [V] against labels [V] (1 positive, 0 negative).

    Returns:
        posts, macro_f1, accuracy, precision and recall of the positive class, auc, brier (mean squared error
        of the probability) and the confusion counts. `auc` is left out when only one class occurs.
    """
    from sklearn.metrics import roc_auc_score

    from selftrain.calibration import probabilities

    predicted = (logits > 0).astype(np.int8)
    true_positive = int(((labels == 1) & (predicted == 1)).sum())
    false_positive = int(((labels == 0) & (predicted == 1)).sum())
    false_negative = int(((labels == 1) & (predicted == 0)).sum())
    true_negative = len(labels) - true_positive - false_positive - false_negative
    result: dict[str, float | int] = {
        "posts": len(labels),
        "macro_f1": macro_f1(labels, predicted),
        "accuracy": (true_positive + true_negative) / max(len(labels), 1),
        "precision": true_positive / max(true_positive + false_positive, 1),
        "recall": true_positive / max(true_positive + false_negative, 1),
        "brier": float(np.mean((probabilities(logits) - labels) ** 2)) if len(labels) else 0.0,
        "true_positive": true_positive,
        "false_positive": false_positive,
        "false_negative": false_negative,
        "true_negative": true_negative,
    }
    if len(np.unique(labels)) == 2:
        result["auc"] = float(roc_auc_score(labels, logits))
    return result
