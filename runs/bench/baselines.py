"""What the loop is compared with, on the same splits and the same features.

Shape legend: ``M`` posts to learn from, ``D`` width of a feature row.
"""

from __future__ import annotations

import numpy as np

from selftrain._util.types import Float32Array, IntArray, LabelArray
from selftrain.data.corpus import Corpus
from selftrain.models.metrics import macro_f1

THRESHOLD = 0.75
REGULARISATION = (1.0, 10.0)
"""C of the logistic regression; on unit vectors scikit-learn's default of 1 regularises strongly."""


def labels_only(corpus: Corpus, c: float) -> float:
    """Test macro-F1 of a logistic regression on the labelled posts."""
    return _logistic(corpus, corpus.labelled, corpus.labels[corpus.labelled], c)


def all_labels(corpus: Corpus, c: float) -> float:
    """The same with the hidden labels of the pool: what the loop is reaching for."""
    positions = np.concatenate([corpus.labelled, corpus.pool])
    return _logistic(corpus, positions, corpus.truth[positions], c)


def self_training(corpus: Corpus, c: float) -> float:
    """Test macro-F1 of scikit-learn's SelfTrainingClassifier, threshold .75."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    positions = np.concatenate([corpus.labelled, corpus.pool])
    rows = _live(corpus, positions)
    base = LogisticRegression(C=c, max_iter=1000)
    model = SelfTrainingClassifier(base, threshold=THRESHOLD).fit(rows, corpus.labels[positions])
    return macro_f1(corpus.labels[corpus.test], model.predict(_live(corpus, corpus.test)))


def _logistic(corpus: Corpus, positions: IntArray, labels: LabelArray, c: float) -> float:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=1000).fit(_live(corpus, positions), labels)
    return macro_f1(corpus.labels[corpus.test], model.predict(_live(corpus, corpus.test)))


def _live(corpus: Corpus, positions: IntArray) -> Float32Array:
    """Rows of the blocks that the posts use: texts alone have no image block worth multiplying by."""
    assert corpus.table is not None, "features are extracted before anything is compared"
    layout = corpus.table.layout
    rows = corpus.rows(positions)
    blocks = [layout.text]
    if any(post.images for post in corpus.posts):
        blocks.append(layout.image)
    return np.concatenate([rows[:, block] for block in blocks], axis=1)
