"""How an offline agent looks at a post: at its text, and at its images, each with a model of its own.

Shape legend: ``B`` posts, ``F`` features, ``I`` width of an image vector, ``K`` classes, ``L`` labelled.

Every view is calibrated out of fold, so that the evidence of several can be added up. Of a post about which
it knows nothing it has no evidence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from agents.errors import LearningError, NotFittedError
from agents.judgment import PostLike
from agents.offline.text_model import Floats, Ngrams, Occurrences, Sparse, fit_weights, normalise, rows

ImageVectors = Callable[[Sequence[PostLike]], npt.NDArray[np.float32]]
"""Posts to rows [B, I]; a row of zeros where a post has no image."""

NEIGHBOURS = 20
TEMPERATURE = 0.05
FEWEST = 4
"""Fewer labelled images than this a class say nothing of the classes."""

WORDS_TOLD = 3
NEIGHBOURS_TOLD = 2
_LONGEST_TOLD = 30
_POOL_IN_FOLDS = 2_000
"""Pool posts that the models of the folds see: enough to fit a calibration, and five times as cheap."""


class Lesson(NamedTuple):
    """What a view learns from."""

    posts: Sequence[PostLike]  # the L labelled posts, then the accepted ones, B in all
    targets: Floats  # [B, K] weight of each class for each post
    labels: npt.NDArray[np.int64]  # [L] class indices of the labelled posts
    pool: Sequence[PostLike]  # posts without labels; may be empty
    folds: npt.NDArray[np.int64]  # [L] fold of each labelled post, for scores out of fold


class Word(NamedTuple):
    """A telling word; `weight` is its share of the evidence for the label judged, negative against it."""

    word: str
    weight: float


class Neighbour(NamedTuple):
    """A labelled post that is near; `similarity` is a cosine."""

    id: str
    label: int
    similarity: float


@dataclass(slots=True)
class Finding:
    """What a view finds in B posts."""

    evidence: Floats  # [B, K] calibrated log-likelihoods, centred over classes; zero where nothing is known
    known: npt.NDArray[np.bool_]  # [B] whether the view knows anything of the post
    # telling words of each post, largest first, for the class index asked
    words: list[list[Word]] = field(default_factory=list)
    neighbours: list[list[Neighbour]] = field(default_factory=list)  # nearest labelled posts of each post


class View(Protocol):
    """One way to look at a post, with a model and a calibration of its own."""

    @property
    def name(self) -> str: ...

    def fit(self, lesson: Lesson) -> Floats:
        """Learn, and return the calibrated evidence [L, K] on the labelled posts, out of fold."""
        ...

    def look(self, posts: Sequence[PostLike], labels: npt.NDArray[np.int64] | None = None) -> Finding:
        """Return evidence on B posts that were not learned from.

        Args:
            posts: B of them.
            labels: [B] class index of each post, to be explained by words and neighbours; None: neither.

        Raises:
            NotFittedError: Before `fit`.
        """
        ...


class Calibrator:
    """Multinomial logistic regression on class scores (Platt's scaling when there are two classes)."""

    def __init__(self, scores: Floats, labels: npt.NDArray[np.int64]) -> None:
        """Fit on out-of-fold `scores` [B, K] and class indices `labels` [B], each of which is there."""
        from sklearn.linear_model import LogisticRegression

        self._scale = float(np.abs(scores).mean()) or 1.0
        # balanced: what comes out is evidence, which several views can add up without counting a prior twice
        self._model = LogisticRegression(C=1.0, class_weight="balanced")
        self._model.fit(self._features(scores), labels)

    def _features(self, scores: Floats) -> Floats:
        return (scores[:, 1:] - scores[:, :1]) / self._scale

    def evidence(self, scores: Floats) -> Floats:
        """Return log-likelihoods [B, K] centred over classes: 0 where the scores say nothing either way."""
        logits = self._model.decision_function(self._features(scores))
        if logits.ndim == 1:
            logits = np.stack([-logits / 2, logits / 2], axis=1)
        centred: Floats = logits - logits.mean(axis=1, keepdims=True)
        return centred


# ---- text -----------------------------------------------------------------------------------------------


class TextView:
    """Words or characters of the text.

    The vocabulary is fitted on the labelled posts and the pool of the first `learn`; later rounds look the
    same texts up again, so only the weights are computed anew.
    """

    def __init__(self, ngrams: Ngrams, *, temper: float) -> None:
        self.name = ngrams.name
        self._ngrams = ngrams
        self._fit = partial(fit_weights, temper=temper)
        self._corpus: Sparse = None
        self._row_of: dict[str, int] = {}
        self._weights: Floats | None = None

    def fit(self, lesson: Lesson) -> Floats:
        """Learn, and return the calibrated evidence [L, K] on the labelled posts, out of fold."""
        if self._corpus is None:
            self._read([*lesson.posts, *lesson.pool], min_count=2 if lesson.pool else 1)
        learned, pool = self._rows(lesson.posts), self._rows(lesson.pool)
        count = len(lesson.labels)
        scores = self._out_of_fold(lesson, learned, pool)
        known = learned[:count].getnnz(axis=1) > 0
        # where a class has no such post, scores are all alike: it will say nothing
        taught = known if len(np.unique(lesson.labels[known])) == lesson.targets.shape[1] else slice(None)
        self._calibrator = Calibrator(scores[taught], lesson.labels[taught])
        self._weights, self._bias = self._fit(learned, lesson.targets, pool)
        self._posts, self._labels = list(lesson.posts[:count]), lesson.labels
        self._labelled, self._rarity = learned[:count], _rarity(learned, pool)
        evidence = self._calibrator.evidence(scores)
        evidence[~known] = 0.0
        return evidence

    def look(self, posts: Sequence[PostLike], labels: npt.NDArray[np.int64] | None = None) -> Finding:
        """Return evidence on posts, explained by telling words and the nearest labelled posts."""
        if self._weights is None:
            raise NotFittedError(f"the view of {self.name} is not fitted yet")
        words: list[list[Word]] = []
        if labels is None:
            matrix = self._rows(posts)
        else:
            found = self._ngrams.find([normalise(post.text) for post in posts])
            matrix = rows(found, len(posts), self._ngrams.width)
            words = self._words(found, len(posts), self._weights[found.feature], labels)
        # an n-gram that no labelled or pool post taught is no knowledge
        known = matrix.getnnz(axis=1) > 0
        evidence = self._calibrator.evidence(matrix @ self._weights + self._bias)
        evidence[~known] = 0.0
        if labels is None:
            return Finding(evidence, known)
        near = (_unit(matrix, self._rarity) @ _unit(self._labelled, self._rarity).T).toarray()
        return Finding(evidence, known, words, _nearest(near, self._posts, self._labels, floor=0.0))

    def _read(self, posts: Sequence[PostLike], *, min_count: int) -> None:
        """Fit the vocabulary on `posts` and keep their rows: later rounds ask for the same texts."""
        raw = list(dict.fromkeys(post.text for post in posts))
        texts = [normalise(text) for text in raw]
        self._ngrams.fit(texts, min_count=min_count)
        self._corpus = rows(self._ngrams.find(texts), len(texts), self._ngrams.width)
        self._row_of = {text: row for row, text in enumerate(raw)}

    def _rows(self, posts: Sequence[PostLike]) -> Sparse:
        if all(post.text in self._row_of for post in posts):
            return self._corpus[np.array([self._row_of[post.text] for post in posts], np.int64)]
        texts = [normalise(post.text) for post in posts]
        return rows(self._ngrams.find(texts), len(texts), self._ngrams.width)

    def _out_of_fold(self, lesson: Lesson, learned: Sparse, pool: Sparse) -> Floats:
        """Return scores [L, K] of each labelled post by a model that did not learn from it."""
        scores = np.zeros((len(lesson.labels), lesson.targets.shape[1]))
        step = max(1, pool.shape[0] // _POOL_IN_FOLDS)
        sample = pool[::step]
        for fold in np.unique(lesson.folds):
            out = np.flatnonzero(lesson.folds == fold)
            rest = np.setdiff1d(np.arange(len(lesson.posts)), out)
            weights, bias = self._fit(learned[rest], lesson.targets[rest], sample)
            scores[out] = learned[out] @ weights + bias
        return scores

    def _words(
        self, found: Occurrences, count: int, weights: Floats, labels: npt.NDArray[np.int64]
    ) -> list[list[Word]]:
        """Return what each word adds to the margin of the label judged over the others, in shares.

        The M occurrences in B = `count` texts have weights [M, K]; labels [B] are class indices.
        """
        own = labels[found.text]
        mine = np.take_along_axis(weights, own[:, None], axis=1)[:, 0]
        others = (weights.sum(axis=1) - mine) / (weights.shape[1] - 1)
        told = np.bincount(found.word, weights=mine - others, minlength=len(found.words))
        result: list[list[Word]] = []
        bounds = np.searchsorted(found.word_text, np.arange(count + 1))
        for start, end in itertools.pairwise(bounds):
            gains: dict[str, float] = {}
            for position in range(start, end):
                gains[found.words[position]] = float(told[position])  # a repeated word counts once
            whole = sum(map(abs, gains.values())) or 1.0
            largest = sorted(gains.items(), key=lambda item: (-abs(item[1]), item[0]))[:WORDS_TOLD]
            result.append([Word(word[:_LONGEST_TOLD], gain / whole) for word, gain in largest if gain])
        return result


def _rarity(*matrices: Sparse) -> Floats:
    """Return the inverse document frequency [F] over all rows together."""
    count = sum(matrix.shape[0] for matrix in matrices)
    seen = sum(np.asarray(matrix.sum(axis=0)).ravel() for matrix in matrices)
    rarity: Floats = np.log((count + 1) / (seen + 1)) + 1
    return rarity


def _unit(matrix: Sparse, rarity: Floats) -> Sparse:
    """Return TF-IDF rows of unit length; an empty row stays empty."""
    scaled = matrix.multiply(rarity).tocsr()
    length = np.sqrt(np.asarray(scaled.multiply(scaled).sum(axis=1)).ravel())
    return scaled.multiply(1 / np.maximum(length, 1e-12)[:, None]).tocsr()


def _nearest(
    near: Floats, posts: Sequence[PostLike], labels: npt.NDArray[np.int64], floor: float = -np.inf
) -> list[list[Neighbour]]:
    """Return the most similar of L labelled posts, by similarities [B, L], where they are above `floor`."""
    order = np.argsort(-near, axis=1, kind="stable")[:, :NEIGHBOURS_TOLD]
    return [
        [Neighbour(posts[j].id, int(labels[j]), float(line[j])) for j in best if line[j] > floor]
        for line, best in zip(near, order, strict=True)
    ]


# ---- images ---------------------------------------------------------------------------------------------


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
        self._fitted = False
        self._calibrator: Calibrator | None = None

    def fit(self, lesson: Lesson) -> Floats:
        """Learn, and return the calibrated evidence [L, K] on the labelled posts, each left out in turn."""
        vectors = self._vectors(lesson.posts)
        seen = np.flatnonzero(vectors.any(axis=1))
        count, classes = len(lesson.labels), lesson.targets.shape[1]
        labelled = seen[seen < count]
        self._fitted, self._calibrator, self._classes = True, None, classes
        if np.bincount(lesson.labels[labelled], minlength=classes).min() < FEWEST:
            return np.zeros((count, classes))
        self._mean = vectors[seen].mean(axis=0)
        self._known, self._targets = self._centred(vectors[seen]), lesson.targets[seen]
        self._posts = [lesson.posts[i] for i in labelled]
        self._labels = lesson.labels[labelled]
        scores = self._scores(self._known[: len(labelled)], leave_out=True)
        self._calibrator = Calibrator(scores, self._labels)
        evidence = np.zeros((count, classes))
        evidence[labelled] = self._calibrator.evidence(scores)
        return evidence

    def look(self, posts: Sequence[PostLike], labels: npt.NDArray[np.int64] | None = None) -> Finding:
        """Return evidence on posts, explained by the nearest labelled images: an image has no words."""
        if not self._fitted:
            raise NotFittedError(f"the view of {self.name} is not fitted yet")
        neighbours: list[list[Neighbour]] = [[] for _ in posts]
        evidence = np.zeros((len(posts), self._classes))
        if self._calibrator is None:
            return Finding(evidence, np.zeros(len(posts), np.bool_), neighbours=neighbours)
        vectors = self._vectors(posts)
        seen = np.asarray(vectors.any(axis=1), np.bool_)
        if seen.any():
            queries = self._centred(vectors[seen])
            evidence[seen] = self._calibrator.evidence(self._scores(queries))
            if labels is not None:
                near = _nearest(queries @ self._known[: len(self._posts)].T, self._posts, self._labels)
                for place, told in zip(np.flatnonzero(seen), near, strict=True):
                    neighbours[place] = told
        return Finding(evidence, seen, neighbours=neighbours)

    def _vectors(self, posts: Sequence[PostLike]) -> Floats:
        vectors = np.asarray(self._vectors_of(posts), np.float64)
        if vectors.ndim != 2 or len(vectors) != len(posts):
            raise LearningError(
                f"image vectors of shape {vectors.shape} for {len(posts)} posts: expected [B, I]"
            )
        # a post whose image could not be encoded comes as NaN: the view does not know it
        vectors = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0.0)
        return _scaled(vectors)

    def _centred(self, vectors: Floats) -> Floats:
        return _scaled(vectors - self._mean)

    def _scores(self, queries: Floats, *, leave_out: bool = False) -> Floats:
        """Return class scores [B, K]; with `leave_out`, query i is the known image i, unseen by itself."""
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
        probs = votes / votes.sum(axis=1, keepdims=True)
        log = np.log(probs + 0.1)  # a lone neighbour is not certainty
        return np.asarray(log - log.mean(axis=1, keepdims=True))


def _scaled(vectors: Floats) -> Floats:
    """Return rows of unit length; a row of zeros stays one."""
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
