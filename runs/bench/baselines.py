"""What the loop is compared with, on the same splits and the same features.

Shape legend: ``M`` posts to learn from, ``D`` width of a feature row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selftrain._util.numeric import class_columns
from selftrain._util.types import Float32Array, IntArray, LabelArray
from selftrain.data.corpus import Corpus
from selftrain.models.metrics import auc, macro_f1

THRESHOLD = 0.75
REGULARISATION = (1.0, 10.0)
"""C of the logistic regression; on unit vectors scikit-learn's default of 1 regularises strongly."""


def labels_only(corpus: Corpus, c: float) -> dict[str, float]:
    """Return test macro-F1 and AUC of a logistic regression on the labelled posts."""
    return _logistic(corpus, corpus.labelled, corpus.labels[corpus.labelled], c)


def all_labels(corpus: Corpus, c: float) -> dict[str, float]:
    """Return the same with the hidden labels of the pool: what the loop is reaching for."""
    known = corpus.pool[corpus.truth[corpus.pool] >= 0]
    positions = np.concatenate([corpus.labelled, known])
    return _logistic(corpus, positions, corpus.truth[positions], c)


def self_training(corpus: Corpus, c: float) -> dict[str, float]:
    """Return test macro-F1 and AUC of scikit-learn's SelfTrainingClassifier, threshold .75."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    positions = np.concatenate([corpus.labelled, corpus.pool])
    rows = _live(corpus, positions)
    base = LogisticRegression(C=c, max_iter=1000)
    model = SelfTrainingClassifier(base, threshold=THRESHOLD).fit(rows, corpus.labels[positions])
    return _scores(model, corpus)


def _logistic(corpus: Corpus, positions: IntArray, labels: LabelArray, c: float) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=1000).fit(_live(corpus, positions), labels)
    return _scores(model, corpus)


def _scores(model: Any, corpus: Corpus) -> dict[str, float]:  # noqa: ANN401 -- a classifier of scikit-learn
    rows, labels = _live(corpus, corpus.test), corpus.labels[corpus.test]
    probs = model.predict_proba(rows)
    columns = class_columns(probs.shape[1])
    areas = [auc(labels == k, probs[:, k]) for k in columns]
    ranked = float(np.mean([0.5 if area is None else area for area in areas]))
    return {"macro_f1": macro_f1(labels, model.predict(rows)), "auc": ranked}


def _live(corpus: Corpus, positions: IntArray) -> Float32Array:
    """Rows of the blocks that the posts use: texts alone have no image block worth multiplying by."""
    assert corpus.table is not None, "features are extracted before anything is compared"
    layout = corpus.table.layout
    rows = corpus.rows(positions)
    blocks = [layout.text]
    if any(post.images for post in corpus.posts):
        blocks.append(layout.image)
    return np.concatenate([rows[:, block] for block in blocks], axis=1)
