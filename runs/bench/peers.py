"""What else can be made of agents' answers: hard majority, cleaned or not, Dawid and Skene's model, CROWDLAB.

Each gives labels for the posts that were asked about; the same student, the product's head, then learns from
them beside the labels, such a post counting as much as an agreed one does in the loop.

Shape legend: ``N`` posts asked about, ``A`` agents, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from losses.against_rest import AgainstRest
from losses.base import Group
from losses.pnu import PNULoss
from selftrain._util.types import BoolArray, Float32Array, FloatArray, IntArray, LabelArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.models.calibration import probabilities
from selftrain.models.head import HeadClassifier
from selftrain.models.trainer import HeadTrainer

MISSING = -1
"""An answer that was not given: an abstention, or no answer at all."""


class Student(NamedTuple):
    """A head, trained as the loop trains it, and what it says of every post."""

    model: HeadClassifier
    trainer: HeadTrainer

    def logits(self, corpus: Corpus, positions: IntArray) -> Float32Array:
        """Return calibrated logits [N, K]."""
        parts = [logits for _, logits in self.trainer.logits(self.model, corpus, positions)]
        return np.concatenate(parts) if parts else np.empty((0, len(corpus.classes)), np.float32)


def train_student(corpus: Corpus, positions: IntArray, probs: FloatArray, seed: int) -> Student:
    """Train a head on the labelled posts, and on pool posts by their probabilities.

    Args:
        corpus: Posts, labels and features.
        positions: [N] pool posts.
        probs: [N, K] in [0, 1].
        seed: Of the head's draws.
    """
    labels, columns = corpus.labels[corpus.labelled], corpus.columns
    groups = np.concatenate(
        [
            corpus.groups(labels, Group.POSITIVE, Group.NEGATIVE),
            corpus.groups(probs.argmax(1), Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE),
        ]
    )
    targets = np.concatenate([labels[:, None] == columns, probs[:, columns]]).astype(np.float32)
    training = TrainingSet(np.concatenate([corpus.labelled, positions]), groups, targets)
    trainer = HeadTrainer()
    loss = AgainstRest((PNULoss(form="pn"),) * len(columns)).for_round(groups, lambda: [0.5] * len(columns))
    return Student(trainer.fit(corpus, training, loss=loss, seed=seed, where="student", start=None), trainer)


def train_on_labels(corpus: Corpus, seed: int) -> Student:
    """Train a head on the labelled posts alone: the loop's round 0."""
    return train_student(corpus, np.empty(0, np.int64), np.empty((0, len(corpus.classes))), seed)


def majority(answers: IntArray, classes: int = 2) -> FloatArray:
    """Return [N, K] 1 for the class that most of [N, A] answers name, else 0; NaN where there is none."""
    votes = np.stack([(answers == k).sum(1) for k in range(classes)], axis=1)
    most = votes == votes.max(1, keepdims=True)
    return np.where(most.sum(1, keepdims=True) == 1, most.astype(float), np.nan)


def cleaned(probs: FloatArray, rows: Float32Array) -> FloatArray:
    """Return hard labels [N, K] with NaN also where cleanlab finds an issue.

    Source: Northcutt et al., Confident Learning (arXiv 1911.00068), as cleanlab has it: probabilities of a
    logistic regression on the other four fifths tell which labels are likely wrong.

    Args:
        probs: [N, K] 1 for a post's label; NaN: none.
        rows: [N, D] features.
    """
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    known = np.flatnonzero(~np.isnan(probs).any(1))
    labels = probs[known].argmax(1)
    model = LogisticRegression(C=10, max_iter=1000)
    held_out = cross_val_predict(model, rows[known], labels, cv=5, method="predict_proba")
    kept = probs.copy()
    # its processes would be forked beside the threads of whoever else works here, and may hang
    kept[known[find_label_issues(labels, held_out, n_jobs=1)]] = np.nan
    return kept


EM_STEPS = 50
SMOOTHING = 0.1
"""Posts of every true class and answer that an agent's table begins with."""


def dawid_skene(answers: IntArray, known: LabelArray, classes: int = 2) -> FloatArray:
    """Return posteriors [N, K] by EM: a table an agent, agents independent given the class.

    Source: Dawid & Skene, Applied Statistics 1979. Posts of known class keep it, which tells the tables which
    way round they are: with two agents the model alone could not know.

    Args:
        answers: [N, A] class of each answer, or `MISSING`.
        known: [N] class where it is known, else -1.
        classes: K.
    """
    votes = np.stack([(answers == k).sum(1) for k in range(classes)], axis=1) + 1e-9
    posterior: FloatArray = votes / votes.sum(1, keepdims=True)
    fixed = np.eye(classes)[known[known >= 0]]
    given = np.stack([answers == k for k in range(classes)], axis=2).astype(float)  # [N, A, K]
    for _ in range(EM_STEPS):
        posterior[known >= 0] = fixed
        prior = posterior.mean(0)
        tables = np.einsum("nt,nak->atk", posterior, given) + SMOOTHING
        tables /= tables.sum(2, keepdims=True)
        scores = np.log(prior + 1e-12) + np.einsum("nak,atk->nt", given, np.log(tables))
        scores = np.exp(scores - scores.max(1, keepdims=True))
        posterior = scores / scores.sum(1, keepdims=True)
    posterior[known >= 0] = fixed
    return posterior


def crowdlab(answers: IntArray, probs: FloatArray) -> FloatArray:
    """Return probabilities [N, K] by CROWDLAB, all but the likeliest alike; NaN where no agent answered.

    Source: Goh, Tkachenko, Mueller, "CROWDLAB" (arXiv 2210.06812), as cleanlab has it. It takes two agents at
    least, because it weighs each by its agreement with the others.

    Args:
        answers: [N, A] classes, or `MISSING`.
        probs: [N, K] by a classifier that has not seen these posts' labels.

    Raises:
        ValueError: Answers that CROWDLAB cannot weigh: one agent, or agents of one class only.
    """
    from cleanlab.multiannotator import get_label_quality_multiannotator

    asked: BoolArray = (answers != MISSING).any(1)
    found = np.full(probs.shape, np.nan)
    given = np.where(answers[asked] == MISSING, np.nan, answers[asked].astype(float))
    result = get_label_quality_multiannotator(
        given[:, ~np.isnan(given).all(0)], probs[asked],
        return_detailed_quality=False, return_annotator_stats=False, verbose=False,
    )["label_quality"]  # fmt: skip
    label, quality = (result[f"consensus_{name}"].to_numpy() for name in ("label", "quality_score"))
    chosen = label.astype(int)[:, None] == np.arange(probs.shape[1])
    found[asked] = np.where(chosen, quality[:, None], (1 - quality[:, None]) / (probs.shape[1] - 1))
    return found


def answer_matrix(said: Mapping[str, list[str | None]], classes: Sequence[str]) -> IntArray:
    """Return answers [N, A] of agents: the places of classes, `MISSING` for none."""
    columns = [[MISSING if label is None else classes.index(label) for label in one] for one in said.values()]
    return np.array(columns, dtype=np.int64).T


def pool_probs(student: Student, corpus: Corpus, positions: IntArray) -> FloatArray:
    """Return the student's probabilities [N, K]."""
    return probabilities(student.logits(corpus, positions))
