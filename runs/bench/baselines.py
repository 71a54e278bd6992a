"""What the loop is compared with, on the same splits and the same features; SetFit, on the same texts.

Shape legend: ``M`` posts to learn from, ``D`` width of a feature row.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from backbones.torchvision_compat import ensure_torchvision
from selftrain._util.numeric import class_columns
from selftrain._util.types import Float32Array, FloatArray, IntArray, LabelArray
from selftrain.data.corpus import Corpus
from selftrain.errors import DataError
from selftrain.models.calibration import probabilities
from selftrain.models.metrics import auc, macro_f1

THRESHOLD = 0.75


def labels_only(corpus: Corpus, c: float) -> dict[str, float]:
    """Return test macro-F1 and AUC of a logistic regression on the labelled posts."""
    return _logistic(corpus, corpus.labelled, corpus.labels[corpus.labelled], c)


def all_labels(corpus: Corpus, c: float) -> dict[str, float]:
    """Return the same with the hidden labels of the pool: what the loop is reaching for."""
    return labels_only(told(corpus), c)


def told(corpus: Corpus) -> Corpus:
    """Return the corpus with the hidden labels of the pool, whose posts are labelled ones then."""
    known = corpus.pool[corpus.truth[corpus.pool] >= 0]
    labels = corpus.labels.copy()
    labels[known] = corpus.truth[known]
    return replace(corpus, labels=labels, labelled=np.concatenate([corpus.labelled, known]))


def head(corpus: Corpus, seed: int) -> dict[str, float]:
    """Return the same of the loop's classifier on the labelled posts alone: its round 0."""
    from runs.bench.peers import train_on_labels

    logits = train_on_labels(corpus, seed).logits(corpus, corpus.test)
    return _measured(corpus, probabilities(logits))


def self_training(corpus: Corpus, c: float) -> dict[str, float]:
    """Return test macro-F1 and AUC of scikit-learn's SelfTrainingClassifier, threshold .75."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    positions = np.concatenate([corpus.labelled, corpus.pool])
    rows = _live(corpus, positions)
    base = LogisticRegression(C=c, max_iter=1000)
    model = SelfTrainingClassifier(base, threshold=THRESHOLD).fit(rows, corpus.labels[positions])
    return _scores(model, corpus)


def label_spreading(corpus: Corpus) -> dict[str, float]:
    """Return the same of scikit-learn's LabelSpreading over nearest neighbours, with its own settings."""
    from sklearn.semi_supervised import LabelSpreading

    positions = np.concatenate([corpus.labelled, corpus.pool])
    model = LabelSpreading(kernel="knn").fit(_live(corpus, positions), corpus.labels[positions])
    # posts that no label reaches through their neighbours are divided by nothing
    with np.errstate(invalid="ignore"):
        probs = model.predict_proba(_live(corpus, corpus.test))
    return _measured(corpus, np.nan_to_num(probs, nan=1 / probs.shape[1]))


AL_QUERIES = 5


def active_learning(corpus: Corpus, seed: int) -> dict[str, float]:
    """Return the same of small-text's active learner (breaking ties) with as many human labels in all.

    Half of them is drawn, stratified, from the labels given; the other half is asked for in the pool, in
    `AL_QUERIES` rounds.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from small_text import BreakingTies, PoolBasedActiveLearner, SklearnDataset
    from small_text.classifiers.factories import SklearnClassifierFactory

    known = corpus.pool[corpus.truth[corpus.pool] >= 0]
    labels = corpus.labels[corpus.labelled]
    kept, _ = train_test_split(corpus.labelled, train_size=0.5, stratify=labels, random_state=seed)
    positions = np.concatenate([kept, known])
    truth = np.concatenate([corpus.labels[kept], corpus.truth[known]]).astype(np.int64)
    count = len(np.unique(truth))
    given = SklearnDataset(csr_matrix(_live(corpus, positions)), truth, target_labels=np.arange(count))
    factory = SklearnClassifierFactory(LogisticRegression(C=10, max_iter=1000), count)
    learner = PoolBasedActiveLearner(factory, BreakingTies(), given)
    # its queries break ties at random, from numpy's shared state
    np.random.seed(seed)
    learner.initialize_data(np.arange(len(kept)), truth[: len(kept)])
    for size in map(len, np.array_split(np.arange(len(labels) - len(kept)), AL_QUERIES)):
        asked = learner.query(num_samples=size)
        learner.update(truth[asked])
    taught = learner.indices_labeled
    return _logistic(corpus, positions[taught], truth[taught].astype(np.int16), 10)


SETFIT = ("setfit==1.2.0", "datasets", "evaluate", "multiprocess", "xxhash")
"""What it takes beside the packages that are locked."""

CONFIDENT, DROPPED, STEPS, BATCH, RATIO, RATE = 0.95, 0.1, 600, 32, 7, 0.3
"""FixMatch's threshold and ratio of unlabelled posts; a strong view has `DROPPED` of a row set to zero."""


def fixmatch(corpus: Corpus, seed: int) -> dict[str, float]:
    """Return the same of a linear head by FixMatch on features: strong views learn the weak ones' classes.

    Source: Sohn et al., FixMatch (arXiv 2001.07685). Images are augmented there, features here: rows as they
    are, and with a share of their values dropped.
    """
    import torch
    from torch.nn import functional

    drawn = torch.Generator().manual_seed(seed)
    rows, pool = (torch.from_numpy(_live(corpus, part)) for part in (corpus.labelled, corpus.pool))
    labels = torch.from_numpy(corpus.labels[corpus.labelled].astype(np.int64))
    head = torch.nn.Linear(rows.shape[1], len(corpus.classes))
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    for _ in range(STEPS):
        some = torch.randint(len(rows), (BATCH,), generator=drawn)
        more = pool[torch.randint(len(pool), (RATIO * BATCH,), generator=drawn)]
        kept = torch.rand(more.shape, generator=drawn) >= DROPPED
        with torch.no_grad():
            sure, guessed = head(more).softmax(1).max(1)
        consistent = functional.cross_entropy(head(more * kept / (1 - DROPPED)), guessed, reduction="none")
        loss = functional.cross_entropy(head(rows[some]), labels[some])
        loss = loss + (consistent * (sure >= CONFIDENT)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        probs = head(torch.from_numpy(_live(corpus, corpus.test))).softmax(1).numpy()
    return _measured(corpus, probs)


def setfit(corpus: Corpus, seed: int) -> dict[str, float]:
    """Return the same of SetFit, and how long it took: the text encoder itself is trained, on labels alone.

    Source: Tunstall et al., "Efficient Few-Shot Learning Without Prompts" (arXiv 2209.11055), by setfit 1.2
    with its own settings throughout. The body is the default backbone's MiniLM, which reads 256 tokens. All
    pairs of labelled posts, of one class as many as of two: 1,300 of 50 posts, 5,100 of 100. One epoch over
    them in batches of 16, then logistic regression (C=1) on the body's embeddings. Images, validation and
    pool are not looked at.

    Raises:
        DataError: setfit is not installed.
    """
    from sklearn.linear_model import LogisticRegression

    from runs.bench.features import sentence_transformer

    package, data = load_setfit()
    began, used = time.perf_counter(), time.process_time()
    labelled, test = ([corpus.posts[i].text for i in part] for part in (corpus.labelled, corpus.test))
    given = data.Dataset.from_dict({"text": labelled, "label": corpus.labels[corpus.labelled].tolist()})
    model = package.SetFitModel(sentence_transformer(), LogisticRegression())
    with tempfile.TemporaryDirectory(prefix="selftrain-setfit-") as folder:
        settings = package.TrainingArguments(
            output_dir=folder, seed=seed, report_to="none", logging_strategy="no", save_strategy="no",
            show_progress_bar=False,
        )  # fmt: skip
        package.Trainer(model, settings, given).train()
    probs = model.predict_proba(test, as_numpy=True, show_progress_bar=False)
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}
    return _measured(corpus, probs) | spent


def load_setfit() -> tuple[Any, Any]:
    """Import setfit, and datasets, in which it is given posts.

    Raises:
        DataError: They are not installed.
    """
    ensure_torchvision()
    try:
        import datasets
        import setfit
    except ImportError as error:
        raise DataError(f"{error}: pip install --no-deps {' '.join(SETFIT)}") from error
    return setfit, datasets


def _logistic(corpus: Corpus, positions: IntArray, labels: LabelArray, c: float) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=1000).fit(_live(corpus, positions), labels)
    return _scores(model, corpus)


def _scores(model: Any, corpus: Corpus) -> dict[str, float]:  # noqa: ANN401 -- a classifier of scikit-learn
    return _measured(corpus, model.predict_proba(_live(corpus, corpus.test)))


def _measured(corpus: Corpus, probs: FloatArray) -> dict[str, float]:
    """Return macro-F1 and AUC of probabilities [test posts, K]."""
    labels = corpus.labels[corpus.test]
    areas = [auc(labels == k, probs[:, k]) for k in class_columns(probs.shape[1])]
    ranked = float(np.mean([0.5 if area is None else area for area in areas]))
    return {"macro_f1": macro_f1(labels, probs.argmax(1)), "auc": ranked}


def _live(corpus: Corpus, positions: IntArray) -> Float32Array:
    """Rows of the blocks that the posts use: texts alone have no image block worth multiplying by."""
    assert corpus.table is not None, "features are extracted before anything is compared"
    layout = corpus.table.layout
    rows = corpus.rows(positions)
    blocks = [layout.text]
    if any(post.images for post in corpus.posts):
        blocks.append(layout.image)
    return np.concatenate([rows[:, block] for block in blocks], axis=1)


Baseline = Callable[[Corpus, int], dict[str, float]]
"""(posts, seed of its draws) -> metric -> value on test."""


def _with(measure: Callable[[Corpus, float], dict[str, float]], c: float) -> Baseline:
    return lambda corpus, seed: measure(corpus, c)


# on unit vectors scikit-learn's default of C = 1 regularises strongly
BASELINES: Mapping[str, Baseline] = {
    "labels_only C=1": _with(labels_only, 1.0),
    "labels_only C=10": _with(labels_only, 10.0),
    "sklearn_self_training C=1": _with(self_training, 1.0),
    "sklearn_self_training C=10": _with(self_training, 10.0),
    "label_spreading": lambda corpus, seed: label_spreading(corpus),
    "fixmatch": fixmatch,
    "active_learning": active_learning,
    "labels_only_head": head,
    "all_labels_head": lambda corpus, seed: head(told(corpus), seed),
    "all_labels C=1": _with(all_labels, 1.0),
    "all_labels C=10": _with(all_labels, 10.0),
}
ON_REQUEST: Mapping[str, Baseline] = {"setfit": setfit}
"""Baselines that take minutes a training and packages of their own: measured where they are named."""
