"""What the loop needs of a model, whether only its head is trained or the whole backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from weakref import ref

import numpy as np

from losses.base import ClassLoss
from selftrain._util.plugins import name_of
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.errors import TrainingError
from selftrain.models.calibration import Calibration
from selftrain.models.head import (
    HeadClassifier,
    HeadKind,
    HeadSettings,
    Scaling,
    fit_scaling,
    load_head,
    train_head,
)
from selftrain.models.train_loop import EpochResult


class Model(Protocol):
    """A trained and calibrated classifier.

    Attributes:
        curve: Loss parts and validation macro-F1 over the epochs.
        best_epoch: The epoch, counted from 1, whose weights these are.
    """

    @property
    def curve(self) -> Sequence[EpochResult]: ...
    @property
    def best_epoch(self) -> int: ...

    def save(self, file: Path, metadata: Mapping[str, Any]) -> None:
        """Write the model and JSON `metadata` as safetensors, whole or not at all.

        Raises:
            StorageError: The disk is full or refuses.
        """
        ...


M = TypeVar("M", bound=Model)


class Trainer(Protocol[M]):
    """Fits, scores and loads models of one kind: `HeadTrainer`, `FineTuner`, or one of your own.

    Positions are indices into `corpus.posts`. The same seed, posts and start give the same model. Of K
    classes C are set against the rest: `corpus.columns`.
    """

    def fit(
        self,
        corpus: Corpus,
        training: TrainingSet,
        *,
        loss: ClassLoss,
        seed: int,
        where: str,
        start: M | None,
    ) -> M:
        """Fit a model, keep its best epoch by validation macro-F1, calibrate it on the validation posts.

        Args:
            corpus: Posts, labels (-1 where hidden) and, if features were extracted, rows [N, D].
            training: M positions with their groups [M, C] (`losses.Group`) and soft targets [M, C] in [0, 1].
            loss: Of logits [B, K], groups [B, C] and targets [B, C].
            seed: Of everything that is drawn.
            where: Said in errors: "round 3".
            start: A model of this trainer to go on from; None: from pretrained weights.

        Raises:
            NonFiniteLossError: A NaN or infinite loss or logit.
            TrainingError: The device is out of memory, or settings and posts do not go together.
        """
        ...

    def logits(
        self, model: M, corpus: Corpus, positions: IntArray
    ) -> Iterator[tuple[IntArray, Float32Array]]:
        """Yield (positions [n], calibrated logits [n, K]) in chunks, in the order given.

        Their softmax gives the probabilities of `corpus.classes`; NaN for a post that cannot be read.
        """
        ...

    def calibrate(self, model: M, calibration: Calibration) -> M:
        """Return the same model with another calibration.

        Called where there is no validation split, on which `fit` calibrates: the calibration is then one of
        posts that models trained like this one did not learn from.
        """
        ...

    def load(self, file: Path) -> M:
        """Load a model that `save` wrote.

        Raises:
            RunStateError: The file is missing, damaged, or of another kind of model.
        """
        ...


def logits_at(trainer: Trainer[M], model: M, corpus: Corpus, positions: IntArray) -> Float32Array:
    """Return a trainer's calibrated logits [n, K] of posts; TrainingError: of others, or in another order."""
    parts = list(trainer.logits(model, corpus, positions))
    columns = len(corpus.classes)
    if not parts:
        parts = [(np.empty(0, np.int64), np.empty((0, columns), np.float32))]
    given, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not np.array_equal(given, positions) or logits.shape != (len(positions), columns):
        raise TrainingError(
            f"{name_of(trainer)}.logits gave {len(given)} positions and logits of shape {logits.shape} for"
            f" {len(positions)} posts: expected (positions [n], logits [n, {columns}]) in the order asked"
        )
    return logits


SCALING_SAMPLE = 10_000  # posts; enough for a mean and a deviation, few enough for any machine
_DEFAULTS = HeadSettings()


@dataclass(kw_only=True)
class HeadTrainer:
    """Trains a head on cached features: no post is read again.

    Args:
        head: "linear", or "mlp" with `hidden` units and `dropout`.
        epochs: Passes over the posts, at least 1; the best one by validation macro-F1 counts.
        learning_rate, weight_decay: AdamW's.
        chunk: Posts scored at once.
    """

    head: HeadKind = "mlp"
    hidden: int = _DEFAULTS.hidden
    dropout: float = _DEFAULTS.dropout
    epochs: int = _DEFAULTS.epochs
    learning_rate: float = _DEFAULTS.learning_rate
    weight_decay: float = _DEFAULTS.weight_decay
    chunk: int = 8192
    # of the posts seen last: one trainer may serve several runs
    _scaling: tuple[ref[Corpus], Scaling] | None = field(default=None, init=False, repr=False)

    @property
    def settings(self) -> HeadSettings:
        """How a head is built and trained."""
        return HeadSettings(
            self.head, self.hidden, self.dropout, self.epochs, self.learning_rate, self.weight_decay
        )

    def fit(
        self,
        corpus: Corpus,
        training: TrainingSet,
        *,
        loss: ClassLoss,
        seed: int,
        where: str,
        start: HeadClassifier | None,
    ) -> HeadClassifier:
        return train_head(
            corpus.rows(training.positions), training,
            corpus.rows(corpus.validation), corpus.labels[corpus.validation],
            scaling=self._fit_scaling(corpus), loss=loss, settings=self.settings, seed=seed,
            classes=corpus.classes if len(corpus.classes) > 2 else (), start=start, where=where,
        )  # fmt: skip

    def logits(
        self, model: HeadClassifier, corpus: Corpus, positions: IntArray
    ) -> Iterator[tuple[IntArray, Float32Array]]:
        for start in range(0, len(positions), self.chunk):
            part = positions[start : start + self.chunk]
            yield part, model.logits(corpus.rows(part))

    def calibrate(self, model: HeadClassifier, calibration: Calibration) -> HeadClassifier:
        return replace(model, calibration=calibration)

    def load(self, file: Path) -> HeadClassifier:
        return load_head(file)[0]

    def _fit_scaling(self, corpus: Corpus) -> Scaling:
        """Fit it on the labelled posts and an even sample of the pool, once a run."""
        if self._scaling is None or self._scaling[0]() is not corpus:
            assert corpus.table is not None, "features are extracted before the loop begins"
            step = max(1, len(corpus.pool) // SCALING_SAMPLE)
            sample = np.concatenate([corpus.labelled, corpus.pool[::step]])
            self._scaling = ref(corpus), fit_scaling(corpus.rows(sample), corpus.table.layout)
        return self._scaling[1]


# ---- what a classifier says of posts that it did not learn from: each training post left out once ------


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
            logits[left_out] = logits_at(self._trainer, model, self._corpus, training.positions[left_out])
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
