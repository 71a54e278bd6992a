"""From what a decision is to reach to the threshold that reaches it, on posts of known label.

Shape legend: ``V`` posts, ``T`` distinct probabilities among them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np

from selftrain._util.types import BoolArray, FloatArray, Interval
from selftrain.errors import RecipeError, ServingError
from selftrain.models.metrics import Curve, clopper_pearson, curve
from selftrain.models.predictor import ValidationScores

HAIR = 1e-6  # a score moves by less when its post is scored in another batch, or was stored in six decimals
GoalKind = Literal["likeliest", "f1", "macro_f1", "precision", "recall"]


class Goal(NamedTuple):
    """What a decision is to reach: nothing ("likeliest"), the best F1, or at least a precision or recall."""

    # which; "macro_f1" is over all answers, the others are of the one that is looked for
    kind: GoalKind = "likeliest"
    least: float = 0.0  # the precision or recall, in (0, 1]; 0 for the others

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read what `str` wrote, "f1" or "precision 0.8"; RecipeError: it is none of them."""
        kind, *rest = text.split() or [""]
        try:
            least = [float(one) for one in rest]
        except ValueError:
            least = [-1.0]
        named: dict[str, GoalKind] = {one: one for one in get_args(GoalKind)}
        bounded = kind in ("precision", "recall")
        if kind not in named or len(least) != bounded or not all(0 < one <= 1 for one in least):
            raise RecipeError(
                f"{text!r} is no rule for an answer; expected one of {', '.join(map(repr, named))}, the last"
                " two with a share above 0 and at most 1, for instance 'precision 0.8'"
            )
        return cls(named[kind], *least)

    def __str__(self) -> str:
        return f"{self.kind} {self.least:g}" if self.least else self.kind


class OperatingPoint(NamedTuple):
    """A threshold, and what it does to the validation posts."""

    threshold: float  # a post passes when its probability is at least this
    precision: Interval  # interval of positives among the posts that pass; of no post all of [0, 1]
    recall: Interval  # interval of the positives that pass
    posts: int  # V
    positives: int  # posts of the positive class among them


def find_threshold(scores: ValidationScores, goal: Goal) -> OperatingPoint:
    """Find the threshold that reaches a goal, a precision, a recall or "f1", on the validation posts.

    Of those with at least a precision the lowest: no other one reaches its recall. Of those with at least a
    recall the most precise, and of those with the best F1 the lowest. Posts of equal probability pass
    together or not at all. The threshold lies a hair below the last one that passes, or half way to the next
    if that is nearer: a post that is scored anew, in another batch or on another machine, differs in its last
    digits, and must not change sides for that.

    The intervals take the threshold as given. It was chosen on the same posts, and with few of them the
    precision of new posts will be lower more often than not: give validation posts in hundreds.

    Raises:
        ServingError: No threshold reaches it (the best precision is named), or no post is positive.
    """
    labels, probs = scores
    truth = labels == 1
    if not truth.any():
        raise ServingError(
            f"none of the {len(labels)} validation posts is positive: nothing can be measured on them. Give"
            " others"
        )
    shape = curve(truth, probs)
    reached, worth = _reached(shape, goal)
    if not reached.any():
        # of equally precise thresholds the one with the highest recall
        best = _point(scores, shape, int(np.flatnonzero(shape.precision == shape.precision.max())[-1]))
        raise ServingError(
            f"no threshold reaches the precision {goal.least:g} on the {best.posts} validation posts: the"
            f" best is {best.precision.value:.3f} at recall {best.recall.value:.3f} (threshold"
            f" {best.threshold:.6f}). Ask for less, or train on more labels"
        )
    # an F1 that equals another comes out a hair apart from it
    best_ones = reached & (worth >= worth[reached].max() - 1e-9)
    return _point(scores, shape, int(np.flatnonzero(best_ones)[-1]))


def _reached(shape: Curve, goal: Goal) -> tuple[BoolArray, FloatArray]:
    """Return [T] which thresholds reach a goal, and what makes one of them better than another."""
    precision, recall = shape.precision, shape.recall
    match goal.kind:
        case "precision":
            return precision >= goal.least, recall
        case "recall":
            return recall >= goal.least - 1e-9, precision  # 3 of 10 posts are a recall of .3
        case "f1":
            return np.ones_like(recall, dtype=np.bool_), 2 * precision * recall / (precision + recall + 1e-12)
        case _:
            raise ValueError(f"{goal} has no threshold")


def point_at(scores: ValidationScores, threshold: float) -> OperatingPoint:
    """Return what a threshold does to posts, of which at least one is positive."""
    truth, passing = scores.labels == 1, scores.probs >= threshold
    hits, passed = int((truth & passing).sum()), int(passing.sum())
    return OperatingPoint(
        threshold,
        clopper_pearson(hits, passed) if passed else Interval(0.0, 0.0, 1.0),
        clopper_pearson(hits, int(truth.sum())),
        len(truth),
        int(truth.sum()),
    )


def _point(scores: ValidationScores, shape: Curve, at: int) -> OperatingPoint:
    last = float(shape.thresholds[at])
    next_lower = float(shape.thresholds[at + 1]) if at + 1 < len(shape.thresholds) else 0.0
    return point_at(scores, max(last - HAIR, (last + next_lower) / 2))
