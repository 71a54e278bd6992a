"""The text view: n-grams, a linear model, and the words and labelled posts that told.

Shape legend: ``B`` posts, ``F`` features, ``K`` classes, ``L`` labelled posts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from agents.errors import NotFittedError
from agents.judgment import PostLike
from agents.offline.calibrate import Calibrator
from agents.offline.linear import fit_weights
from agents.offline.ngrams import Ngrams, Occurrences, Sparse, normalise, rows
from agents.offline.view import Floats, Lesson, Neighbour, Opinion, Word

EM_SHARE = 0.5
WORDS_TOLD = 3
NEIGHBOURS_TOLD = 2
_LONGEST_TOLD = 30
_POOL_IN_FOLDS = 2_000
"""Pool posts that the models of the folds see: enough to fit a calibration, and five times as cheap."""


class TextView:
    """Words or characters of the text.

    The vocabulary is fitted on the labelled posts and the pool of the first `learn`; later rounds look the
    same texts up again, so only the weights are computed anew.
    """

    def __init__(self, ngrams: Ngrams, *, temper: float, em_share: float = EM_SHARE) -> None:
        self.name = ngrams.name
        self._ngrams = ngrams
        self._fit = partial(fit_weights, temper=temper, em_share=em_share)
        self._corpus: Sparse = None
        self._row_of: dict[str, int] = {}
        self._weights: Floats | None = None

    def fit(self, lesson: Lesson) -> Floats:
        """Learn, and give the calibrated evidence [L, K] on the labelled posts, out of fold."""
        if self._corpus is None:
            self._read([*lesson.posts, *lesson.pool], min_count=2 if lesson.pool else 1)
        learned, pool = self._rows(lesson.posts), self._rows(lesson.pool)
        count = len(lesson.labels)
        scores = self._out_of_fold(lesson, learned, pool)
        classes = lesson.targets.shape[1]
        known = learned[:count].getnnz(axis=1) > 0
        if not np.bincount(lesson.labels[known], minlength=classes).all():
            known = np.ones(count, np.bool_)  # scores all alike: it will say nothing
        self._calibrator = Calibrator(scores[known], lesson.labels[known], classes)
        self._weights, self._bias = self._fit(learned, lesson.targets, pool)
        self._posts, self._labels = list(lesson.posts[:count]), lesson.labels
        self._labelled, self._rarity = learned[:count], _rarity(learned, pool)
        evidence = self._calibrator.evidence(scores)
        evidence[learned[:count].getnnz(axis=1) == 0] = 0.0
        return evidence

    def look(self, posts: Sequence[PostLike]) -> Opinion:
        """Evidence on posts that were not learned from.

        Raises:
            NotFittedError: Before `learn`.
        """
        return self._opinion(self._rows(posts))

    def explain(self, posts: Sequence[PostLike], labels: npt.NDArray[np.int64]) -> Opinion:
        """The same with the telling words for `labels` [B] and the nearest labelled posts."""
        found = self._ngrams.find([normalise(post.text) for post in posts])
        matrix = rows(found, len(posts), self._ngrams.width)
        opinion = self._opinion(matrix)
        opinion.words = self._words(found, len(posts), labels)
        opinion.neighbours = self._neighbours(matrix)
        return opinion

    def _opinion(self, matrix: Sparse) -> Opinion:
        if self._weights is None:
            raise NotFittedError(f"the view of {self.name} has not learned yet")
        # an n-gram that no labelled or pool post taught is no knowledge
        known = matrix.getnnz(axis=1) > 0
        evidence = self._calibrator.evidence(matrix @ self._weights + self._bias)
        evidence[~known] = 0.0
        return Opinion(evidence, known)

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
        """Scores [L, K] of each labelled post by a model that did not learn from it."""
        scores = np.zeros((len(lesson.labels), lesson.targets.shape[1]))
        step = max(1, pool.shape[0] // _POOL_IN_FOLDS)
        sample = pool[::step]
        for fold in np.unique(lesson.folds):
            out = np.flatnonzero(lesson.folds == fold)
            rest = np.setdiff1d(np.arange(len(lesson.posts)), out)
            weights, bias = self._fit(learned[rest], lesson.targets[rest], sample)
            scores[out] = learned[out] @ weights + bias
        return scores

    def _words(self, found: Occurrences, count: int, labels: npt.NDArray[np.int64]) -> list[list[Word]]:
        """What each word adds to the margin of the label judged over the best other class, in shares."""
        if self._weights is None:
            raise NotFittedError(f"the view of {self.name} has not learned yet")
        weights = self._weights[found.feature]  # [M, K]
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

    def _neighbours(self, matrix: Sparse) -> list[list[Neighbour]]:
        near = (_unit(matrix, self._rarity) @ _unit(self._labelled, self._rarity).T).toarray()
        order = np.argsort(-near, axis=1, kind="stable")[:, :NEIGHBOURS_TOLD]
        return [
            [Neighbour(self._posts[j].id, int(self._labels[j]), float(line[j])) for j in best if line[j] > 0]
            for line, best in zip(near, order, strict=True)
        ]


def _rarity(*matrices: Sparse) -> Floats:
    """Inverse document frequency [F] over all rows together."""
    count = sum(matrix.shape[0] for matrix in matrices)
    seen = sum(np.asarray(matrix.sum(axis=0)).ravel() for matrix in matrices)
    rarity: Floats = np.log((count + 1) / (seen + 1)) + 1
    return rarity


def _unit(matrix: Sparse, rarity: Floats) -> Sparse:
    """TF-IDF rows of unit length; an empty row stays empty."""
    scaled = matrix.multiply(rarity).tocsr()
    length = np.sqrt(np.asarray(scaled.multiply(scaled).sum(axis=1)).ravel())
    return scaled.multiply(1 / np.maximum(length, 1e-12)[:, None]).tocsr()
