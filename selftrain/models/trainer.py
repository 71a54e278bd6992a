"""What the loop needs of a model, whether only its head is trained or the whole backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from losses.base import RoundLoss
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.models.classifier import HeadClassifier, load_head, train_head
from selftrain.models.head import HeadKind, HeadSettings, Progress, Scaling, fit_scaling


class Model(Protocol):
    """A trained and calibrated classifier."""

    @property
    def curve(self) -> Sequence[Progress]:
        """Loss parts and validation macro-F1 over the epochs."""
        ...

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights these are."""
        ...

    def save(self, file: Path, metadata: Mapping[str, Any]) -> None:
        """Write safetensors, atomically."""
        ...


M = TypeVar("M", bound=Model)


class Trainer(Protocol[M]):
    """Fits, scores and loads models of one kind."""

    def fit(
        self,
        corpus: Corpus,
        training: TrainingSet,
        *,
        loss: RoundLoss,
        seed: int,
        where: str,
        start: M | None,
    ) -> M:
        """A model fitted to `training`, its best epoch by validation macro-F1, calibrated on validation."""
        ...

    def logits(
        self, model: M, corpus: Corpus, positions: IntArray
    ) -> Iterator[tuple[IntArray, Float32Array]]:
        """(positions [n], calibrated logits [n]) in chunks, in the order given."""
        ...

    def load(self, file: Path) -> M:
        """A model that `save` wrote."""
        ...


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
    _scaling: Scaling | None = field(default=None, init=False, repr=False)

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
        loss: RoundLoss,
        seed: int,
        where: str,
        start: HeadClassifier | None,
    ) -> HeadClassifier:
        return train_head(
            corpus.rows(training.positions),
            training,
            corpus.rows(corpus.validation),
            corpus.labels[corpus.validation],
            scaling=self._fit_scaling(corpus),
            loss=loss,
            settings=self.settings,
            seed=seed,
            start=start,
            where=where,
        )

    def logits(
        self, model: HeadClassifier, corpus: Corpus, positions: IntArray
    ) -> Iterator[tuple[IntArray, Float32Array]]:
        for start in range(0, len(positions), self.chunk):
            part = positions[start : start + self.chunk]
            yield part, model.logits(corpus.rows(part))

    def load(self, file: Path) -> HeadClassifier:
        return load_head(file)[0]

    def _fit_scaling(self, corpus: Corpus) -> Scaling:
        """From the labelled posts and an even sample of the pool, once a run."""
        if self._scaling is None:
            assert corpus.table is not None, "features are extracted before the loop begins"
            step = max(1, len(corpus.pool) // SCALING_SAMPLE)
            sample = np.concatenate([corpus.labelled, corpus.pool[::step]])
            self._scaling = fit_scaling(corpus.rows(sample), corpus.table.layout)
        return self._scaling
