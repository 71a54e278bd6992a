"""From the precision that is asked for to the threshold that gives it, on posts of known label.

Shape legend: ``V`` posts, ``T`` distinct probabilities among them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftrain.data.manifest import read_manifest
from selftrain.errors import ServingError
from selftrain.models.metrics import Steps, steps
from selftrain.models.scorer import PostScore, Scorer, ValidationScores

LEVEL = 0.95
HAIR = 1e-6  # a score moves by less when its post is scored in another batch, or was stored in six decimals


class Share(NamedTuple):
    """A share and its 95 % interval (Clopper and Pearson 1934)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class OperatingPoint(NamedTuple):
    """A threshold, and what it does to the validation posts.

    Attributes:
        threshold: A post passes when its positive probability is at least this.
        precision: Share of positives among the posts that pass.
        recall: Share of the positives that pass.
        posts: V.
        positives: Posts of the positive class among them.
    """

    threshold: float
    precision: Share
    recall: Share
    posts: int
    positives: int


class MeasuredPosts(NamedTuple):
    """Scores of labelled posts, and how many of them have none."""

    scores: ValidationScores
    left_out: int


def validation_scores(scorer: Scorer, manifest: Path | None) -> MeasuredPosts:
    """Score the posts to choose a threshold on: those of `manifest`, else the ones that the model stored.

    Raises:
        ServingError: None were stored, or no row of `manifest` has a label and a score.
        ManifestError: `manifest` cannot be read.
    """
    if manifest is None:
        stored = scorer.validation()
        if stored is None:
            raise ServingError(
                f"{scorer.name} has no scores of its validation posts: give labelled posts with --validation"
            )
        return MeasuredPosts(stored, 0)
    report = read_manifest(manifest)
    posts = [post for post in report.posts if post.label is not None]
    unknown = sorted({str(post.label) for post in posts} - set(scorer.classes))
    if unknown:
        raise ServingError(
            f"{manifest} has the label {unknown[0]!r}; expected one of {sorted(scorer.classes)}: correct it"
        )
    scored = [
        (post.label == scorer.positive, result.probabilities[scorer.positive])
        for post, result in zip(posts, scorer.score(posts), strict=True)
        if isinstance(result, PostScore)
    ]
    if not scored:
        raise ServingError(f"{manifest} has no labelled post that can be scored: give some a label")
    labels, probs = zip(*scored, strict=True)
    scores = ValidationScores(np.array(labels, np.int8), np.array(probs, np.float64))
    return MeasuredPosts(scores, len(report.problems) + len(posts) - len(scored))


def lowest_threshold(scores: ValidationScores, precision: float) -> OperatingPoint:
    """Find the lowest threshold whose precision is at least the asked one: no other one reaches its recall.

    Posts of equal probability pass together or not at all. The threshold lies a hair below the last one that
    passes, or half way to the next if that is nearer: a post that is scored anew, in another batch or on
    another machine, differs in its last digits, and must not change sides for that.

    The intervals take the threshold as given. It was chosen on the same posts, and with few of them the
    precision of new posts will be lower more often than not: give validation posts in hundreds.

    Args:
        scores: Of the validation posts.
        precision: In (0, 1].

    Raises:
        ServingError: No threshold reaches it (the best precision is named), or no post is positive.
    """
    curve = _steps(scores)
    reached = curve.hits / curve.passing >= precision
    if not reached.any():
        # of equally precise thresholds the one with the highest recall
        shares = curve.hits / curve.passing
        best = _point(scores, curve, int(np.flatnonzero(shares == shares.max())[-1]))
        raise ServingError(
            f"no threshold reaches the precision {precision:g} on the {best.posts} validation posts: the best"
            f" is {best.precision.value:.3f} at recall {best.recall.value:.3f} (threshold"
            f" {best.threshold:.6f}). Ask for less, or train on more labels"
        )
    return _point(scores, curve, int(np.flatnonzero(reached)[-1]))


def share(part: int, whole: int) -> Share:
    """Return `part` of `whole` with the exact binomial interval."""
    from scipy.special import betaincinv  # scipy.stats, which has this interval too, takes seconds to import

    tail = (1 - LEVEL) / 2
    low = float(betaincinv(part, whole - part + 1, tail)) if part else 0.0
    high = float(betaincinv(part + 1, whole - part, 1 - tail)) if part < whole else 1.0
    return Share(part / whole, low, high)


def _steps(scores: ValidationScores) -> Steps:
    labels, probs = scores
    if not (labels == 1).any():
        raise ServingError(
            f"none of the {len(labels)} validation posts is positive: no precision can be measured on them."
            " Give others with --validation"
        )
    return steps(labels == 1, probs)


def _point(scores: ValidationScores, curve: Steps, at: int) -> OperatingPoint:
    hits, positives = int(curve.hits[at]), int((scores.labels == 1).sum())
    last = float(curve.thresholds[at])
    next_lower = float(curve.thresholds[at + 1]) if at + 1 < len(curve.thresholds) else 0.0
    return OperatingPoint(
        max(last - HAIR, (last + next_lower) / 2),
        share(hits, int(curve.passing[at])),
        share(hits, positives),
        len(scores.labels),
        positives,
    )
