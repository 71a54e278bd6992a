"""The papers' figures of one question: F1, macro-F1, AUC, recall at a precision, precision at a recall.

Shape legend: ``B`` posts that answer the question, ``R`` resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from selftrain._util.types import BoolArray, FloatArray, IntArray
from selftrain.models.metrics import macro_f1_of_classes, steps

PRECISIONS = (0.60, 0.65, 0.70, 0.75, 0.80)
RECALL = 0.50
RESAMPLES = 1000
LEVEL = 0.95
SEED = 20241215


class Curve(NamedTuple):
    """Precision and recall at every threshold that tells posts apart, from the highest down.

    Attributes:
        thresholds: [T] a post is chosen when its score is at least this.
        precision, recall: [T] in [0, 1].
    """

    thresholds: FloatArray
    precision: FloatArray
    recall: FloatArray


class Interval(NamedTuple):
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def curve(truth: BoolArray, scores: FloatArray) -> Curve:
    """The precision-recall curve; posts of equal score are chosen together.

    Args:
        truth: [B] whether the answer looked for is the true one; at least one is.
        scores: [B] its probability.

    Raises:
        ValueError: Nothing to find.
    """
    if not truth.any():
        raise ValueError("none of the posts has the answer looked for: recall is undefined")
    found = steps(truth, scores)
    return Curve(found.thresholds, found.hits / found.passing, found.hits / found.hits[-1])


def figures(truth: BoolArray, scores: FloatArray) -> dict[str, float]:
    """Every figure of one question with two answers, at threshold .5 where one is needed.

    Args:
        truth: [B] whether the answer looked for is the true one; both must occur.
        scores: [B] its probability, in [0, 1].

    Returns:
        f1, macro_f1, auc, recall_at_precision_60 ... _80 (0 where no threshold reaches it) and
        precision_at_recall_50.

    Raises:
        ValueError: Only one of the two answers occurs.
    """
    from sklearn.metrics import roc_auc_score

    if truth.all():
        raise ValueError("all of the posts have the answer looked for: AUC is undefined")
    shape = curve(truth, scores)
    chosen = scores > 0.5
    positive, negative = _f1(truth, chosen), _f1(~truth, ~chosen)
    result = {
        "f1": positive,
        "macro_f1": (positive + negative) / 2,
        "auc": float(roc_auc_score(truth, scores)),
    }
    for precision in PRECISIONS:
        reached = shape.precision >= precision
        result[f"recall_at_precision_{round(precision * 100)}"] = float(
            shape.recall[reached].max(initial=0.0)
        )
    result["precision_at_recall_50"] = float(shape.precision[shape.recall >= RECALL].max())
    return result


def intervals(truth: BoolArray, scores: FloatArray, resamples: int = RESAMPLES) -> dict[str, Interval]:
    """`figures` with percentile intervals; posts are drawn anew within each answer, so that both occur.

    Raises:
        ValueError: As `figures`.
    """
    values = figures(truth, scores)
    generator = np.random.default_rng(SEED)
    groups = np.flatnonzero(truth), np.flatnonzero(~truth)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(resamples):
        places = np.concatenate([generator.choice(group, len(group)) for group in groups])
        for name, value in figures(truth[places], scores[places]).items():
            drawn[name].append(value)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {
        name: Interval(values[name], *(float(one) for one in np.quantile(drawn[name], tails)))
        for name in values
    }


def multiclass(truth: IntArray, predicted: IntArray) -> dict[str, float]:
    """Macro-F1 and accuracy of a question with any number of answers.

    Args:
        truth, predicted: [B] indices of answers; those that neither occur nor are predicted do not count.
    """
    return {
        "macro_f1": macro_f1_of_classes(truth, predicted),
        "accuracy": float(np.mean(truth == predicted)) if len(truth) else 0.0,
    }


def _f1(truth: BoolArray, chosen: BoolArray) -> float:
    hits = int((truth & chosen).sum())
    total = int(truth.sum()) + int(chosen.sum())
    return 2 * hits / total if total else 0.0
