"""From the precision that is asked for to the threshold that gives it, on posts of known label.

Shape legend: ``V`` posts, ``T`` distinct probabilities among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftrain._util.types import Interval
from selftrain.data.manifest import read_manifest
from selftrain.data.values import Names
from selftrain.errors import ServingError
from selftrain.models.metrics import Curve, clopper_pearson, curve
from selftrain.models.predictor import Predictor, ValidationScores

HAIR = 1e-6  # a score moves by less when its post is scored in another batch, or was stored in six decimals


class OperatingPoint(NamedTuple):
    """A threshold, and what it does to the validation posts.

    Attributes:
        threshold: A post passes when its positive probability is at least this.
        precision: Interval of positives among the posts that pass.
        recall: Interval of the positives that pass.
        posts: V.
        positives: Posts of the positive class among them.
    """

    threshold: float
    precision: Interval
    recall: Interval
    posts: int
    positives: int


class MeasuredPosts(NamedTuple):
    """Scores of labelled posts, and how many of them have none."""

    scores: ValidationScores
    left_out: int = 0


def validation_scores(
    predictor: Predictor, manifest: Path | None, columns: Mapping[str, str] | None = None
) -> MeasuredPosts:
    """Score the posts to choose a threshold on: those of `manifest`, else the ones that the model stored.

    `columns` says which column holds a field, where that is called otherwise.

    Raises:
        ServingError: None were stored, or no row of `manifest` has a label and a score.
        ManifestError: `manifest` cannot be read.
    """
    if manifest is None:
        stored = predictor.validation()
        if stored is None:
            raise ServingError(
                f"{predictor.name} has no scores of its validation posts: give labelled posts with"
                " --validation"
            )
        return MeasuredPosts(stored)
    report = read_manifest(manifest, columns=columns, videos=predictor.kind == "agentps")
    names = Names(predictor.classes)
    posts = [
        replace(post, label=names.find(post.label) or post.label)
        for post in report.posts
        if post.label is not None
    ]
    unknown = sorted({str(post.label) for post in posts} - set(names))
    if unknown:
        raise ServingError(
            f"{manifest} has the label {unknown[0]!r}; expected one of {sorted(predictor.classes)}: correct"
            " it"
        )
    scored = [
        (post.label == predictor.positive, result.probs[predictor.positive])
        for post, result in zip(posts, predictor.predict(posts), strict=True)
        if not result.reason
    ]
    if not scored:
        hints = "".join(f"\n{hint}" for hint in report.hints)
        raise ServingError(f"{manifest} has no labelled post that can be scored: give some a label{hints}")
    labels, probs = zip(*scored, strict=True)
    scores = ValidationScores(np.array(labels, np.int16), np.array(probs, np.float64))
    return MeasuredPosts(scores, report.set_aside + len(posts) - len(scored))


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
    labels, probs = scores
    truth = labels == 1
    if not truth.any():
        raise ServingError(
            f"none of the {len(labels)} validation posts is positive: no precision can be measured on them."
            " Give others with --validation"
        )
    shape = curve(truth, probs)
    reached = np.flatnonzero(shape.precision >= precision)
    if not len(reached):
        # of equally precise thresholds the one with the highest recall
        best = _point(scores, shape, int(np.flatnonzero(shape.precision == shape.precision.max())[-1]))
        raise ServingError(
            f"no threshold reaches the precision {precision:g} on the {best.posts} validation posts: the best"
            f" is {best.precision.value:.3f} at recall {best.recall.value:.3f} (threshold"
            f" {best.threshold:.6f}). Ask for less, or train on more labels"
        )
    return _point(scores, shape, int(reached[-1]))


def _point(scores: ValidationScores, shape: Curve, at: int) -> OperatingPoint:
    last = float(shape.thresholds[at])
    next_lower = float(shape.thresholds[at + 1]) if at + 1 < len(shape.thresholds) else 0.0
    truth, passing = scores.labels == 1, scores.probs >= last
    hits = int((truth & passing).sum())
    return OperatingPoint(
        max(last - HAIR, (last + next_lower) / 2),
        clopper_pearson(hits, int(passing.sum())),
        clopper_pearson(hits, int(truth.sum())),
        len(truth),
        int(truth.sum()),
    )
