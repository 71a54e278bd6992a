"""How far a figure could be off: 95 % intervals of shares, and of whatever can be drawn anew.

Macro-F1, accuracy, precision and recall depend on the posts only through the confusion counts, so that
drawing posts anew is drawing counts anew: one multinomial draw a resample instead of as many as posts.

Shape legend: ``B`` posts, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selftrain._util.types import BoolArray, FloatArray, IntArray, Interval
from selftrain.models.metrics import auc, threshold_metrics
from selftrain.rounds import SplitMetrics
from selftrain.store.scores import Scored

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2

RESAMPLES, SEED = 4000, 20251113
METRICS = ("macro_f1", "accuracy", "precision", "recall")

# ---- shares -------------------------------------------------------------------------------------------


def wilson(hits: int, posts: int) -> Interval:
    """Return the share `hits` / `posts` with Wilson's interval (1927); [0, 1] around one half of no post."""
    from scipy.stats import binomtest

    if not posts:
        return Interval(0.5, 0.0, 1.0)
    ends = binomtest(hits, posts).proportion_ci(LEVEL, "wilson")
    return Interval(hits / posts, float(ends.low), float(ends.high))


def clopper_pearson(hits: int, posts: int) -> Interval:
    """Return the share `hits` / `posts`, of at least one post, with the exact interval (1934).

    It covers at least 95 %, whatever the share: for a promise, where Wilson's is for a comparison.
    """
    from scipy.stats import binomtest

    ends = binomtest(hits, posts).proportion_ci(LEVEL, "exact")
    return Interval(hits / posts, float(ends.low), float(ends.high))


# ---- whatever can be drawn anew -----------------------------------------------------------------------


def percentile_interval(value: float, drawn: Sequence[float] | FloatArray) -> Interval:
    """Return `value` with the middle 95 % of its values [R] on posts drawn anew."""
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return Interval(value, float(low), float(high))


def auc_interval(
    truth: BoolArray, scores: FloatArray, seed: int = 0, resamples: int = 1000
) -> Interval | None:
    """Return AUC [B] over draws of posts; None where only one kind occurs."""
    value = auc(truth, scores)
    if value is None:
        return None
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(truth), len(truth)) for _ in range(resamples))
    found = [one for drawn in draws if (one := auc(truth[drawn], scores[drawn])) is not None]
    return percentile_interval(value, found)


def threshold_intervals(truth: BoolArray, scores: FloatArray, resamples: int = 1000) -> dict[str, Interval]:
    """Return `threshold_metrics` [B] with intervals; posts are drawn within each answer, so that both occur.

    Raises:
        ValueError: As `threshold_metrics`.
    """
    values = threshold_metrics(truth, scores)
    generator = np.random.default_rng(20241215)
    groups = np.flatnonzero(truth), np.flatnonzero(~truth)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(resamples):
        places = np.concatenate([generator.choice(group, len(group)) for group in groups])
        for name, value in threshold_metrics(truth[places], scores[places]).items():
            drawn[name].append(value)
    return {name: percentile_interval(values[name], drawn[name]) for name in values}


# ---- confusion counts ---------------------------------------------------------------------------------


def counts_of(one: SplitMetrics) -> IntArray:
    """Return [4] true negatives, false positives, false negatives, true positives of one split."""
    counts = (one.true_negative, one.false_positive, one.false_negative, one.true_positive)
    return np.array(counts, dtype=np.int64)


def estimates(counts: IntArray) -> dict[str, Interval]:
    """Every metric of `METRICS` with its interval.

    Args:
        counts: [4] as `counts_of` gives them; at least one post.

    Raises:
        ValueError: No post.
    """
    resampled = _resampled(counts)
    values = metrics(counts[None, :])
    drawn = metrics(resampled)
    return {name: percentile_interval(float(values[name][0]), drawn[name]) for name in METRICS}


def difference(first: Scored, second: Scored) -> Interval | None:
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
    return percentile_interval(value, metrics(other)["macro_f1"] - metrics(one)["macro_f1"])


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
