"""The stages of a round: scores, candidates, its loss, what the agents may learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.judgment import Accepted, Candidate
from losses.groups import Group
from losses.pnu import PNULoss
from losses.prior import estimate_prior
from selftrain.calibration import probabilities
from selftrain.classifier import TrainingSet
from selftrain.corpus import Corpus, IntArray
from selftrain.head import FloatArray
from selftrain.ledger import Ledger
from selftrain.metrics import evaluate
from selftrain.rounds import Json, labels_known
from selftrain.run.scores import Scored, write_scores
from selftrain.selection import Selection
from selftrain.trainer import M, Trainer


def measure(trainer: Trainer[M], model: M, corpus: Corpus, path: Path) -> Json:
    """Metrics on the validation split and, where its labels are known, on the test split.

    The scores that they come from are kept in the round's folder `path`: curves and intervals need them.
    """
    splits = {"validation": corpus.validation}
    if labels_known(corpus.labels[corpus.test]):
        splits["test"] = corpus.test
    scored = {
        name: Scored(
            [corpus.posts[i].id for i in positions],
            corpus.labels[positions],
            _logits(trainer, model, corpus, positions),
        )
        for name, positions in splits.items()
    }
    write_scores(path, scored, positive=corpus.positive, negative=corpus.negative)
    return {name: evaluate(one.labels, one.logits) for name, one in scored.items()}


def _logits(trainer: Trainer[M], model: M, corpus: Corpus, positions: IntArray) -> FloatArray:
    parts = [logits for _, logits in trainer.logits(model, corpus, positions)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def turned_against(trainer: Trainer[M], model: M, corpus: Corpus, ledger: Ledger) -> list[int]:
    """Accepted positions whose pseudo-label the model no longer gives: they are consistent no more."""
    accepted = np.array(sorted(ledger.accepted), dtype=np.int64)
    values = np.array([ledger.accepted[int(p)].value for p in accepted], dtype=np.int8)
    logits = _logits(trainer, model, corpus, accepted)
    return [int(p) for p in accepted[(logits > 0) != (values == 1)]]


AGREED_WEIGHT = 0.5
"""What an agreed post counts beside a labelled one when lambda_soft is "count"."""


def loss_of_round(loss: PNULoss, training: TrainingSet, theta: float, *, by_count: bool) -> PNULoss:
    """The loss with the prior of this round's divergent set and, `by_count`, with its lambda_soft.

    L_pn and L_soft are means over their groups: at a fixed lambda_soft, 100 labels outweigh 5,000 agreed
    posts or are drowned by 50. By count, lambda_soft = AGREED_WEIGHT * agreed / labelled.
    """
    loss = replace(loss, theta=theta)
    if not by_count or loss.form == "paper":
        return loss
    agreed = int(np.isin(training.groups, (Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE)).sum())
    labelled = int(np.isin(training.groups, (Group.POSITIVE, Group.NEGATIVE)).sum())
    return replace(loss, lambda_soft=AGREED_WEIGHT * agreed / labelled)


def prior_of_divergent(trainer: Trainer[M], model: M, corpus: Corpus, ledger: Ledger) -> float:
    """Share of positives among the divergent posts: they are a selected set, so it is estimated."""
    divergent = np.array(sorted(ledger.divergent), dtype=np.int64)
    if not len(divergent):
        return 0.5  # no divergent post, no unlabelled part: any value gives the same loss
    training_prior = float((corpus.labels[corpus.validation] == 1).mean())
    return estimate_prior(probabilities(_logits(trainer, model, corpus, divergent)), training_prior)


def as_candidates(corpus: Corpus, chosen: Selection) -> list[Candidate]:
    """The chosen posts as the agents see them: with the classifier's label and its probability."""
    odds = probabilities(np.abs(chosen.logits))
    return [
        Candidate(corpus.posts[position], corpus.class_name(int(logit > 0)), float(probability))
        for position, logit, probability in zip(chosen.positions, chosen.logits, odds, strict=True)
    ]


def candidate_row(candidate: Candidate) -> Json:
    """A line of candidates.jsonl."""
    return {"id": candidate.post.id, "label": candidate.label, "probability": round(candidate.probability, 6)}


def as_accepted(corpus: Corpus, ledger: Ledger) -> Sequence[Accepted]:
    """The pool posts that the agents may learn from, pseudo-labels first.

    People's labels count as much as labels do, but agents are neither calibrated nor measured on them: these
    are posts on which they could not agree.
    """
    learned = [
        Accepted(corpus.posts[position], corpus.class_name(pseudo.value))
        for position, pseudo in sorted(ledger.accepted.items())
    ]
    return learned + [
        Accepted(corpus.posts[position], corpus.class_name(human.value), weight=1.0)
        for position, human in sorted(ledger.human.items())
    ]
