"""How good a classifier is, from logits and labels.

Evaluators return plain numbers by name; scikit-learn computes what it offers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from selftrain._util.numeric import sigmoid
from selftrain._util.types import BoolArray, Float32Array, FloatArray, IntArray, LabelArray
from selftrain.rounds import SplitMetrics


class Steps(NamedTuple):
    """What each threshold that tells posts apart lets pass, from the highest down.

    Attributes:
        thresholds: [T] distinct scores, falling; a post passes when its score is at least this.
        passing: [T] posts that pass, rising.
        hits: [T] of them, those that are looked for.
    """

    thresholds: FloatArray
    passing: IntArray
    hits: IntArray


def steps(truth: BoolArray, scores: FloatArray) -> Steps:
    """Counts at every distinct score [B]; posts of equal score pass together.

    Args:
        truth: [B] whether the post is looked for.
        scores: [B].
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # the last post of each tie
    return Steps(falling[last], last + 1, np.cumsum(truth[order], dtype=np.int64)[last])


def macro_f1_of_classes(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
    """Mean F1 over the classes that occur in either [B]; 1 when both agree everywhere, 0 without posts."""
    scores = []
    for value in np.union1d(truth, predicted):
        hits = int(((truth == value) & (predicted == value)).sum())
        scores.append(2 * hits / (int((truth == value).sum()) + int((predicted == value).sum())))
    return float(np.mean(scores)) if scores else 0.0


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


def evaluate(labels: LabelArray, logits: Float32Array) -> SplitMetrics:
    """Metrics of calibrated logits [V] against labels [V] (1 positive, 0 negative)."""
    from sklearn.metrics import roc_auc_score

    predicted = (logits > 0).astype(np.int8)
    true_positive = int(((labels == 1) & (predicted == 1)).sum())
    false_positive = int(((labels == 0) & (predicted == 1)).sum())
    false_negative = int(((labels == 1) & (predicted == 0)).sum())
    true_negative = len(labels) - true_positive - false_positive - false_negative
    return SplitMetrics(
        posts=len(labels),
        macro_f1=macro_f1(labels, predicted),
        accuracy=(true_positive + true_negative) / max(len(labels), 1),
        precision=true_positive / max(true_positive + false_positive, 1),
        recall=true_positive / max(true_positive + false_negative, 1),
        brier=float(np.mean((sigmoid(logits) - labels) ** 2)) if len(labels) else 0.0,
        true_positive=true_positive,
        false_positive=false_positive,
        false_negative=false_negative,
        true_negative=true_negative,
        auc=float(roc_auc_score(labels, logits)) if len(np.unique(labels)) == 2 else None,
    )
