"""What a classifier says of posts that it did not learn from: every training post left out once.

Shape legend: ``M`` training posts, ``K`` classes, ``C`` classes set against the rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from losses.base import ClassLoss
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.models.trainer import Trainer


class Fit(NamedTuple):
    """How a model was trained: on whom, with which loss and seed; `where` is said in an error."""

    training: TrainingSet
    loss: ClassLoss
    seed: int
    where: str


class CrossFit:
    """Logits of training posts by models that did not learn from them; the last fit is remembered.

    There are at most `folds`, and never more than the smallest labelled class has posts, so that each model
    sees all.
    """

    def __init__(self, trainer: Trainer[Any], corpus: Corpus, folds: int) -> None:
        self._trainer, self._corpus, self._folds = trainer, corpus, folds
        self._last: tuple[Fit, Float32Array] | None = None

    def __call__(self, fit: Fit) -> Float32Array:
        """Return logits [M, K] of the posts of `fit`, each by a model trained like it on the other folds."""
        if self._last is None or not _same(self._last[0], fit):
            self._last = fit, self._logits(fit)
        return self._last[1]

    def _logits(self, fit: Fit) -> Float32Array:
        training = fit.training
        fold = assign_folds(training, self._folds, fit.seed)
        logits = np.empty((len(fold), len(self._corpus.classes)), np.float32)
        for number in range(int(fold.max()) + 1):
            left_out = fold == number
            rest = TrainingSet(*(column[~left_out] for column in training))
            where = f"{fit.where}, fold {number + 1}"
            model = self._trainer.fit(
                self._corpus, rest, loss=fit.loss, seed=fit.seed, where=where, start=None
            )
            scored = self._trainer.logits(model, self._corpus, training.positions[left_out])
            logits[left_out] = np.concatenate([part for _, part in scored])
        return logits


def _same(one: Fit, other: Fit) -> bool:
    pairs = zip(one.training, other.training, strict=True)
    posts = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
    return posts and (one.loss, one.seed) == (other.loss, other.seed)


def assign_folds(training: TrainingSet, folds: int, seed: int) -> IntArray:
    """Return the fold [M] of every post, at most so many: those of one class and kind are spread evenly.

    There are at least two labelled posts of each class.
    """
    count = min(folds, int(np.unique(training.labels, return_counts=True)[1].min()))
    kinds, kind = np.unique(training.groups, axis=0, return_inverse=True)
    draw = np.random.RandomState(seed % 2**32)
    fold = np.empty(len(kind), np.int64)
    for number in range(len(kinds)):
        members = draw.permutation(np.flatnonzero(kind.reshape(-1) == number))
        fold[members] = np.arange(len(members)) % count
    return fold
