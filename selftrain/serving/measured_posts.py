"""The posts that a threshold is chosen on: those of a manifest, or the ones whose scores a model stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftrain.data.manifest import read_manifest
from selftrain.data.values import Names
from selftrain.errors import ServingError
from selftrain.models.predictor import Predictor, ValidationScores


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
