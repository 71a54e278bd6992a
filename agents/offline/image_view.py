"""The image view: labelled posts with images near this one.

Shape legend: ``B`` posts, ``I`` width of an image vector, ``K`` classes, ``L`` labelled posts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from agents.errors import LearningError, NotFittedError
from agents.judgment import PostLike
from agents.offline.calibrate import Calibrator
from agents.offline.view import Floats, Lesson, Neighbour, Opinion

ImageVectors = Callable[[Sequence[PostLike]], npt.NDArray[np.float32]]
"""Posts to rows [B, I]; a row of zeros where a post has no image."""

NEIGHBOURS = 20
TEMPERATURE = 0.05
NEIGHBOURS_TOLD = 2
FEWEST = 4
"""Fewer labelled images than this a class say nothing of the classes."""


class ImageView:
    """Cosine neighbours, after the mean of the labelled images is taken out.

    Args:
        image_vectors: Posts to rows [B, I].
        measure: "neighbours" weighs the 20 nearest by their similarity; "centroid" compares with the mean
            image of each class. Two measures, so that two agents do not look in the same way.
    """

    def __init__(self, image_vectors: ImageVectors, measure: Literal["neighbours", "centroid"]) -> None:
        self.name = f"image {measure}"
        self._vectors_of = image_vectors
        self._measure = measure
        self._learned = False
        self._calibrator: Calibrator | None = None

    def fit(self, lesson: Lesson) -> Floats:
        """Learn, and give the calibrated evidence [L, K] on the labelled posts, each left out in turn."""
        vectors = self._vectors(lesson.posts)
        seen = np.flatnonzero(vectors.any(axis=1))
        count, classes = len(lesson.labels), lesson.targets.shape[1]
        labelled = seen[seen < count]
        self._learned, self._calibrator, self._classes = True, None, classes
        if np.bincount(lesson.labels[labelled], minlength=classes).min() < FEWEST:
            return np.zeros((count, classes))
        self._mean = vectors[seen].mean(axis=0)
        self._known, self._targets = self._centred(vectors[seen]), lesson.targets[seen]
        self._posts = [lesson.posts[i] for i in labelled]
        self._labels = lesson.labels[labelled]
        scores = self._scores(self._known[: len(labelled)], leave_out=True)
        self._calibrator = Calibrator(scores, self._labels, classes)
        evidence = np.zeros((count, classes))
        evidence[labelled] = self._calibrator.evidence(scores)
        return evidence

    def look(self, posts: Sequence[PostLike]) -> Opinion:
        """Evidence on posts that were not learned from.

        Raises:
            NotFittedError: Before `learn`.
        """
        return self._opinion(posts)

    def explain(self, posts: Sequence[PostLike], labels: npt.NDArray[np.int64]) -> Opinion:
        """The same with the nearest labelled images; an image has no telling words."""
        return self._opinion(posts, near=True)

    def _opinion(self, posts: Sequence[PostLike], *, near: bool = False) -> Opinion:
        if not self._learned:
            raise NotFittedError(f"the view of {self.name} has not learned yet")
        neighbours: list[list[Neighbour]] = [[] for _ in posts]
        evidence = np.zeros((len(posts), self._classes))
        if self._calibrator is None:
            return Opinion(evidence, np.zeros(len(posts), np.bool_), neighbours=neighbours)
        vectors = self._vectors(posts)
        seen = np.asarray(vectors.any(axis=1), np.bool_)
        if seen.any():
            queries = self._centred(vectors[seen])
            evidence[seen] = self._calibrator.evidence(self._scores(queries))
            if near:
                for place, told in zip(np.flatnonzero(seen), self._nearest(queries), strict=True):
                    neighbours[place] = told
        return Opinion(evidence, seen, neighbours=neighbours)

    def _vectors(self, posts: Sequence[PostLike]) -> Floats:
        vectors = np.asarray(self._vectors_of(posts), np.float64)
        if vectors.ndim != 2 or len(vectors) != len(posts):
            raise LearningError(
                f"image vectors of shape {vectors.shape} for {len(posts)} posts: expected [B, I]"
            )
        # a post whose image could not be encoded comes as NaN: the view does not know it
        vectors = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0.0)
        unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit

    def _centred(self, vectors: Floats) -> Floats:
        shifted = vectors - self._mean
        unit: Floats = shifted / np.maximum(np.linalg.norm(shifted, axis=1, keepdims=True), 1e-12)
        return unit

    def _scores(self, queries: Floats, *, leave_out: bool = False) -> Floats:
        """Class scores [B, K]; with `leave_out`, query i is the known image i and does not see itself."""
        totals = self._targets.sum(axis=0)
        if self._measure == "centroid":
            scores: Floats = queries @ (self._known.T @ self._targets)
            if leave_out:
                scores = scores - self._targets[: len(queries)]  # its own cosine is 1
            scores = scores / totals
            centred: Floats = scores - scores.mean(axis=1, keepdims=True)
            return centred
        near = queries @ self._known.T
        if leave_out:
            np.fill_diagonal(near, -np.inf)
        order = np.argsort(-near, axis=1, kind="stable")[:, :NEIGHBOURS]
        close = np.take_along_axis(near, order, axis=1)
        weight = np.exp((close - close[:, :1]) / TEMPERATURE)
        votes = (weight[:, :, None] * (self._targets / totals)[order]).sum(axis=1)
        share = votes / votes.sum(axis=1, keepdims=True)
        log = np.log(share + 0.1)  # a lone neighbour is not certainty
        return np.asarray(log - log.mean(axis=1, keepdims=True))

    def _nearest(self, queries: Floats) -> list[list[Neighbour]]:
        near = queries @ self._known[: len(self._posts)].T
        order = np.argsort(-near, axis=1, kind="stable")[:, :NEIGHBOURS_TOLD]
        return [
            [Neighbour(self._posts[j].id, int(self._labels[j]), float(line[j])) for j in best]
            for line, best in zip(near, order, strict=True)
        ]
