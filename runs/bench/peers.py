"""What else can be made of agents' answers: hard majority, Dawid and Skene's model, CROWDLAB.

Each gives labels for the posts that were asked about; the same student, the product's head, then learns from
them beside the labels, such a post counting as much as an agreed one does in the loop.

Shape legend: ``N`` posts asked about, ``A`` agents, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from losses.base import Group
from losses.pnu import PNULoss
from selftrain._util.numeric import sigmoid
from selftrain._util.types import BoolArray, Float32Array, FloatArray, IntArray, LabelArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.models.classifier import HeadClassifier
from selftrain.models.trainer import HeadTrainer

MISSING = -1
"""An answer that was not given: an abstention, or no answer at all."""


class Student(NamedTuple):
    """A head, trained as the loop trains it, and what it says of every post."""

    model: HeadClassifier
    trainer: HeadTrainer

    def logits(self, corpus: Corpus, positions: IntArray) -> Float32Array:
        """Return calibrated logits [N] of the positive class."""
        parts = [logits for _, logits in self.trainer.logits(self.model, corpus, positions)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


def train_student(corpus: Corpus, positions: IntArray, probs: FloatArray, seed: int) -> Student:
    """Train a head on the labelled posts, and on pool posts by the probability of the positive class.

    Args:
        corpus: Posts, labels and features.
        positions: [N] pool posts; none of them, and it is the head on the labels alone: the loop's round 0.
        probs: [N] in [0, 1].
        seed: Of the head's draws.
    """
    labels, positive = corpus.labels[corpus.labelled], probs > 0.5
    groups = np.concatenate(
        [
            np.where(labels == 1, Group.POSITIVE, Group.NEGATIVE),
            np.where(positive, Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE),
        ]
    ).astype(np.int64)
    targets = np.concatenate([labels == 1, probs]).astype(np.float32)
    training = TrainingSet(np.concatenate([corpus.labelled, positions]), groups, targets)
    trainer = HeadTrainer()
    loss = PNULoss(form="pn").for_round(groups, lambda: 0.5)
    return Student(trainer.fit(corpus, training, loss=loss, seed=seed, where="student", start=None), trainer)


def majority(answers: IntArray) -> FloatArray:
    """Return [N] 1 or 0, whether most of [N, A] answers are the positive class; NaN without a majority."""
    votes = (answers == 1).sum(1) - (answers == 0).sum(1)
    return np.where(votes > 0, 1.0, np.where(votes < 0, 0.0, np.nan))


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
    """Return [N] the positive class's probability by CROWDLAB; NaN where no agent answered.

    Source: Goh, Tkachenko, Mueller, "CROWDLAB" (arXiv 2210.06812), as cleanlab has it. It takes two agents at
    least, because it weighs each by its agreement with the others.

    Args:
        answers: [N, A] 1 positive, 0 negative, or `MISSING`.
        probs: [N] of the positive class, by a classifier that has not seen these posts' labels.

    Raises:
        ValueError: Answers that CROWDLAB cannot weigh: one agent, or agents of one class only.
    """
    from cleanlab.multiannotator import get_label_quality_multiannotator

    asked: BoolArray = (answers != MISSING).any(1)
    found = np.full(len(answers), np.nan)
    given = np.where(answers[asked] == MISSING, np.nan, answers[asked].astype(float))
    result = get_label_quality_multiannotator(
        given[:, ~np.isnan(given).all(0)], np.stack([1 - probs[asked], probs[asked]], axis=1),
        return_detailed_quality=False, return_annotator_stats=False, verbose=False,
    )["label_quality"]  # fmt: skip
    label, quality = (result[f"consensus_{name}"].to_numpy() for name in ("label", "quality_score"))
    found[asked] = np.where(label == 1, quality, 1 - quality)
    return found


def answer_matrix(said: Mapping[str, list[str | None]], positive: str) -> IntArray:
    """Return answers [N, A] of agents: 1 the positive class, 0 another one, `MISSING` none."""
    columns = [
        [MISSING if label is None else int(label == positive) for label in one] for one in said.values()
    ]
    return np.array(columns, dtype=np.int64).T


def pool_probs(student: Student, corpus: Corpus, positions: IntArray) -> FloatArray:
    """Return the student's probabilities [N] of the positive class."""
    return sigmoid(student.logits(corpus, positions))
