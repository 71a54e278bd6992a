"""How good a model is, from labels and scores, and how far each figure could be off: 95 % intervals.

scikit-learn and scipy compute what they offer. Macro-F1, accuracy, precision and recall depend on the posts
only through the confusion counts, so that drawing posts anew is drawing counts anew: one multinomial draw a
resample instead of as many as posts.

What is said of one class (precision, AUC, a curve) is said of those that are set against the rest: of two the
positive one, of more all together.

Shape legend: ``B`` posts, ``T`` thresholds that tell posts apart, ``R`` resamples, ``K`` classes, ``C``
classes set against the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from selftrain._util.numeric import class_columns, decide, log_odds, log_probs, sigmoid
from selftrain._util.types import BoolArray, Float32Array, FloatArray, IntArray, Interval, LabelArray
from selftrain.rounds import SplitMetrics
from selftrain.store.scores import PrecisionRecall, ReliabilityBin, ReliabilityDiagram, Scored

PRECISIONS = (0.60, 0.65, 0.70, 0.75, 0.80)
"""The precisions at which AgentPS (arXiv 2412.15251) gives recall."""
RECALL = 0.50
"""The recall at which it gives precision."""

METRICS = ("macro_f1", "accuracy", "precision", "recall")
LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2
RESAMPLES, SEED = 4000, 20251113

# ---- labels against labels ----------------------------------------------------------------------------


def macro_f1(
    truth: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: Sequence[Any] | None = None
) -> float:
    """Return the mean F1 of the classes, in [0, 1], of labels [B] of any kind; 0 without posts.

    Written out, since training asks for it hundreds of times a second and scikit-learn takes 2 ms. Those of
    `classes` count also where they do not occur (F1 0); None: those that occur in either.
    """
    scores = []
    for value in np.union1d(truth, predicted) if classes is None else classes:
        hits = int(((truth == value) & (predicted == value)).sum())
        seen = int((truth == value).sum()) + int((predicted == value).sum())
        scores.append(2 * hits / seen if seen else 0.0)
    return float(np.mean(scores)) if scores else 0.0


def accuracy_and_f1(truth: IntArray, predicted: IntArray) -> dict[str, float]:
    """Return macro_f1 and accuracy of class indices [B]; classes that occur in neither do not count."""
    return {
        "macro_f1": macro_f1(truth, predicted),
        "accuracy": float(np.mean(truth == predicted)) if len(truth) else 0.0,
    }


def evaluate(labels: LabelArray, logits: Float32Array, predicted: IntArray | None = None) -> SplitMetrics:
    """Return metrics of calibrated logits [B, K] against labels [B]; `predicted` [B]: as is decided."""
    from sklearn.metrics import confusion_matrix

    kinds = range(logits.shape[1])
    predicted = decide(logits) if predicted is None else predicted
    confusion = confusion_matrix(labels, predicted, labels=list(kinds))
    found = count_metrics(confusion.reshape(1, -1))
    truth, odds = against_rest(labels, logits)
    areas = [auc(truth[:, c], odds[:, c]) for c in range(truth.shape[1])]
    return SplitMetrics(
        posts=len(labels),
        macro_f1=macro_f1(labels, predicted),
        accuracy=float(found["accuracy"][0]),
        precision=float(found["precision"][0]),
        recall=float(found["recall"][0]),
        brier=float(np.mean((sigmoid(odds) - truth).ravel() ** 2)) if len(labels) else 0.0,
        confusion=confusion.tolist(),
        auc=None if None in areas else float(np.mean(areas)),  # type: ignore[arg-type]
    )


def against_rest(labels: LabelArray, logits: Float32Array) -> tuple[BoolArray, FloatArray]:
    """Return, of each class set against the rest, whether a post is one and its log-odds, both [B, C]."""
    columns = class_columns(logits.shape[1])
    return labels[:, None] == columns, log_odds(logits)[:, columns]


def _pooled(scored: Scored) -> tuple[BoolArray, FloatArray]:
    """Return the same of all these classes together, both [B * C]."""
    truth, odds = against_rest(scored.labels, scored.logits)
    return truth.reshape(-1), odds.reshape(-1)


def log_likelihoods(labels: LabelArray, logits: Float32Array) -> FloatArray:
    """Return the log-probability [B] of each label under calibrated logits [B, K], in nats, at most 0."""
    return log_probs(logits)[np.arange(len(labels)), labels]


# ---- labels against scores ----------------------------------------------------------------------------


def auc(truth: BoolArray, scores: npt.NDArray[Any]) -> float | None:
    """Return the area under the ROC curve of scores [B], in [0, 1]; None where only one kind occurs."""
    if truth.all() or not truth.any():
        return None
    _, hits, misses = _ranked(truth, scores)
    if len(hits) > 2:  # of a straight stretch the ends are enough, and their sum is scikit-learn's to the bit
        bends = np.r_[True, (np.diff(hits, 2) != 0) | (np.diff(misses, 2) != 0), True]
        hits, misses = hits[bends], misses[bends]
    up, across = np.r_[0, hits] / hits[-1], np.r_[0, misses] / misses[-1]
    return float((np.diff(across) * (up[1:] + up[:-1]) / 2).sum())


def _ranked(truth: BoolArray, scores: npt.NDArray[Any]) -> tuple[FloatArray, IntArray, IntArray]:
    """Return the thresholds [T] that tell posts apart, from the highest down, and the posts from there up.

    Those are counts [T] of either kind, the true ones first. Written out as `macro_f1` is: intervals ask for
    this thousands of times, and scikit-learn takes 4 ms to look at what it is given.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is no number (NaN): posts cannot be ranked by it")
    order = np.argsort(scores, kind="stable")[::-1]
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(truth[order], dtype=np.int64)[ends]
    return ranked[ends], hits, ends + 1 - hits


class Curve(NamedTuple):
    """Precision and recall at every threshold that tells posts apart, from the highest down."""

    thresholds: FloatArray  # [T] a post is chosen when its score is at least this
    # precision, recall: [T] in [0, 1]
    precision: FloatArray
    recall: FloatArray


def curve(truth: BoolArray, scores: FloatArray) -> Curve:
    """Return the precision-recall curve of `scores` [B]; posts of equal score are chosen together.

    `truth` [B] says whether the answer looked for is the true one; ValueError: it never is.
    """
    if not truth.any():
        raise ValueError("none of the posts has the answer looked for: recall is undefined")
    thresholds, hits, misses = _ranked(truth, scores)
    return Curve(thresholds, hits / (hits + misses), hits / hits[-1])


def threshold_metrics(truth: BoolArray, scores: FloatArray) -> dict[str, float]:
    """Return AgentPS's metrics of one question with two answers, at threshold .5 where one is needed.

    These are f1, macro_f1, auc, recall_at_precision_60 ... _80 (0 where no threshold reaches it) and
    precision_at_recall_50, of whether the answer looked for is the true one [B], both of which must occur,
    and its probability [B].
    """
    ranking = auc(truth, scores)
    shape = curve(truth, scores)
    if ranking is None:
        raise ValueError("all of the posts have the answer looked for: AUC is undefined")
    chosen = scores > 0.5
    result = {
        "f1": macro_f1(truth, chosen, (True,)),
        "macro_f1": macro_f1(truth, chosen, (False, True)),
        "auc": ranking,
    }
    for precision in PRECISIONS:
        reached = shape.recall[shape.precision >= precision]
        result[f"recall_at_precision_{round(precision * 100)}"] = float(reached.max(initial=0.0))
    result["precision_at_recall_50"] = float(shape.precision[shape.recall >= RECALL].max())
    return result


# ---- what a report draws ------------------------------------------------------------------------------

MOST_POINTS = 250
BINS = 10


def precision_recall(scored: Scored) -> PrecisionRecall | None:
    """Return the curve, thinned to `MOST_POINTS`; None when only one class occurs."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    if len(np.unique(scored.labels)) < 2:
        return None
    truth, odds = _pooled(scored)
    precision, recall, _ = precision_recall_curve(truth, odds)
    chosen = np.unique(np.linspace(0, len(recall) - 1, min(MOST_POINTS, len(recall))).round().astype(int))
    average = float(average_precision_score(truth, odds))
    return PrecisionRecall(recall[chosen][::-1].tolist(), precision[chosen][::-1].tolist(), average)


def reliability(scored: Scored, bins: int = BINS) -> ReliabilityDiagram:
    """Return how often a class is true by its predicted probability, in `bins` equal intervals of [0, 1]."""
    truth, odds = _pooled(scored)
    return reliability_of(truth, sigmoid(odds), bins)


def reliability_of(truth: BoolArray, probs: FloatArray, bins: int = BINS) -> ReliabilityDiagram:
    """Return how often it was so by the probability [B] that was said of it."""
    place = np.minimum((probs * bins).astype(int), bins - 1)
    found = [
        ReliabilityBin(
            low=number / bins,
            high=(number + 1) / bins,
            posts=int(inside.sum()),
            confidence=float(probs[inside].mean()),
            accuracy=float(truth[inside].mean()),
        )
        for number in range(bins)
        if (inside := place == number).any()
    ]
    gaps = sum(one.posts * abs(one.confidence - one.accuracy) for one in found)
    return ReliabilityDiagram(found, gaps / max(len(probs), 1))


def histogram(scored: Scored, bins: int) -> tuple[list[int], list[int]]:
    """Count a class's posts by its probability, in `bins` equal intervals, and the others."""
    truth, odds = _pooled(scored)
    probs = sigmoid(odds)
    own, other = (np.histogram(probs[some], bins=bins, range=(0, 1))[0].tolist() for some in (truth, ~truth))
    return own, other


# ---- intervals of shares --------------------------------------------------------------------------------


def wilson(hits: int, posts: int) -> Interval:
    """Return the share `hits` / `posts` with Wilson's interval (1927); [0, 1] around one half of no post."""
    return _share_interval(hits, posts, "wilson") if posts else Interval(0.5, 0.0, 1.0)


def clopper_pearson(hits: int, posts: int) -> Interval:
    """Return the share `hits` / `posts`, of at least one post, with the exact interval (1934).

    It covers at least 95 %, whatever the share: for a promise, where Wilson's is for a comparison.
    """
    return _share_interval(hits, posts, "exact")


def _share_interval(hits: int, posts: int, method: Literal["wilson", "exact"]) -> Interval:
    from scipy.stats import binomtest

    ends = binomtest(hits, posts).proportion_ci(LEVEL, method)
    return Interval(hits / posts, float(ends.low), float(ends.high))


# ---- intervals of whatever can be drawn anew ------------------------------------------------------------


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
    """Return `threshold_metrics` with intervals; posts [B] are drawn within each answer: both occur."""
    values = threshold_metrics(truth, scores)
    generator = np.random.default_rng(20241215)
    groups = np.flatnonzero(truth), np.flatnonzero(~truth)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(resamples):
        places = np.concatenate([generator.choice(group, len(group)) for group in groups])
        for name, value in threshold_metrics(truth[places], scores[places]).items():
            drawn[name].append(value)
    return {name: percentile_interval(values[name], drawn[name]) for name in values}


# ---- intervals of what follows from confusion counts ----------------------------------------------------


def counts_of(one: SplitMetrics) -> IntArray:
    """Return [K * K] posts of one split by true and predicted class."""
    return np.array(one.confusion, dtype=np.int64).ravel()


def estimates(counts: IntArray) -> dict[str, Interval]:
    """Return every metric of `METRICS` with its interval, of `counts_of` one post at least."""
    values, drawn = count_metrics(counts[None, :]), count_metrics(_resampled(counts))
    return {name: percentile_interval(float(values[name][0]), drawn[name]) for name in METRICS}


def difference(first: Scored, second: Scored) -> Interval | None:
    """Return macro-F1 of `second` minus that of `first`, paired; None when they are of different posts."""
    place = {post_id: i for i, post_id in enumerate(first.ids)}
    if not len(first.ids) or len(place) != len(second.ids) or set(place) != set(second.ids):
        return None
    order = np.array([place[post_id] for post_id in second.ids])
    labels = first.labels[order]
    if not np.array_equal(labels, second.labels) or first.logits.shape != second.logits.shape:
        return None
    # K x K x K outcomes: truth x what the first says x what the second says
    classes = second.logits.shape[1]
    shape = classes, classes, classes
    outcome = np.ravel_multi_index((labels, first.decided[order], second.decided), shape)
    counts = np.bincount(outcome, minlength=classes**3).astype(np.int64)
    one, other = _marginals(counts[None, :], shape)
    value = float((count_metrics(other)["macro_f1"] - count_metrics(one)["macro_f1"])[0])
    one, other = _marginals(_resampled(counts), shape)
    return percentile_interval(value, count_metrics(other)["macro_f1"] - count_metrics(one)["macro_f1"])


def count_metrics(counts: IntArray) -> dict[str, FloatArray]:
    """Return metric -> [R], from confusion counts [R, K * K]. A share of nothing is 0.

    Classes that occur in neither truth nor prediction do not count: a draw without a rare one says nothing
    of it.
    """
    classes = math.isqrt(counts.shape[1])
    table = counts.reshape(-1, classes, classes).astype(np.float64)
    right, true, given = np.diagonal(table, axis1=1, axis2=2), table.sum(2), table.sum(1)
    columns, occurs = class_columns(classes), true + given > 0

    def mean(shares: FloatArray, some: IntArray) -> FloatArray:
        return _share(shares[:, some].sum(1), occurs[:, some].sum(1))

    return {
        "macro_f1": mean(_share(2 * right, true + given), np.arange(classes)),
        "accuracy": _share(right.sum(1), table.sum((1, 2))),
        "precision": mean(_share(right, given), columns),
        "recall": mean(_share(right, true), columns),
    }


def _marginals(joint: IntArray, shape: tuple[int, int, int]) -> tuple[IntArray, IntArray]:
    """Turn joint outcomes [R, K^3] into the confusion counts [R, K * K] of the first and of the second."""
    cube = joint.reshape(-1, *shape)
    return cube.sum(axis=3).reshape(len(cube), -1), cube.sum(axis=2).reshape(len(cube), -1)


def _resampled(counts: IntArray) -> IntArray:
    total = int(counts.sum())
    if total < 1:
        raise ValueError("no post: an interval needs at least one")
    # the draws are the same for the same counts, whatever was asked before
    return np.random.default_rng(SEED).multinomial(total, counts / total, size=RESAMPLES)


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
