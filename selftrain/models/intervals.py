"""How far a figure could be off: percentile intervals of the bootstrap, from counts of outcomes.

Macro-F1, accuracy, precision and recall depend on the posts only through the confusion counts, so that
drawing posts anew is drawing counts anew: one multinomial draw a resample instead of as many as posts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from selftrain._util.types import FloatArray, IntArray
from selftrain.rounds import SplitMetrics
from selftrain.store.scores import Scored

RESAMPLES, SEED = 4000, 20251113
LEVEL = 0.95
METRICS = ("macro_f1", "accuracy", "precision", "recall")


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def counts_of(one: SplitMetrics) -> IntArray:
    """[4] true negatives, false positives, false negatives, true positives of one split's metrics."""
    counts = (one.true_negative, one.false_positive, one.false_negative, one.true_positive)
    return np.array(counts, dtype=np.int64)


def estimates(counts: IntArray) -> dict[str, Estimate]:
    """Every metric of `METRICS` with its interval.

    Args:
        counts: [4] as `counts_of` gives them; at least one post.

    Raises:
        ValueError: No post.
    """
    resampled = _resampled(counts)
    values = metrics(counts[None, :])
    drawn = metrics(resampled)
    return {name: _estimate(float(values[name][0]), drawn[name]) for name in METRICS}


def difference(first: Scored, second: Scored) -> Estimate | None:
    """Macro-F1 of `second` minus that of `first` on the same posts, paired; None when the posts differ."""
    place = {post_id: i for i, post_id in enumerate(first.ids)}
    if not len(first.ids) or len(place) != len(second.ids) or set(place) != set(second.ids):
        return None
    order = np.array([place[post_id] for post_id in second.ids])
    labels = first.labels[order]
    if not np.array_equal(labels, second.labels):
        return None
    # eight outcomes: truth x what the first says x what the second says
    outcome = labels * 4 + (first.logits[order] > 0) * 2 + (second.logits > 0)
    counts = np.bincount(outcome, minlength=8).astype(np.int64)
    one, other = _marginals(counts[None, :])
    value = float((metrics(other)["macro_f1"] - metrics(one)["macro_f1"])[0])
    one, other = _marginals(_resampled(counts))
    return _estimate(value, metrics(other)["macro_f1"] - metrics(one)["macro_f1"])


def metrics(counts: IntArray) -> dict[str, FloatArray]:
    """Metric -> [R], from confusion counts [R, 4]. A share of nothing is 0, as in `metrics`."""
    tn, fp, fn, tp = counts.T.astype(np.float64)
    positive = _share(2 * tp, 2 * tp + fp + fn)
    negative = _share(2 * tn, 2 * tn + fp + fn)
    return {
        "macro_f1": (positive + negative) / 2,
        "accuracy": _share(tp + tn, tp + tn + fp + fn),
        "precision": _share(tp, tp + fp),
        "recall": _share(tp, tp + fn),
    }


def _marginals(joint: IntArray) -> tuple[IntArray, IntArray]:
    """[R, 8] joint outcomes to the confusion counts [R, 4] of the first and of the second."""
    cube = joint.reshape(-1, 2, 2, 2)
    return cube.sum(axis=3).reshape(-1, 4), cube.sum(axis=2).reshape(-1, 4)


def _resampled(counts: IntArray) -> IntArray:
    total = int(counts.sum())
    if total < 1:
        raise ValueError("no post: an interval needs at least one")
    # the draws are the same for the same counts, whatever was asked before
    return np.random.default_rng(SEED).multinomial(total, counts / total, size=RESAMPLES)


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _estimate(value: float, drawn: FloatArray) -> Estimate:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
