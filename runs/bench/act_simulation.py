"""Simulated annotators, criticizers and reviews, to plan a budget and to test what is claimed of one.

A simulated criticizer is binormal: it sees a score that is N(mu, 1) on wrong labels and N(0, 1) on right
ones, mu set by its AUC, and states the probability that follows, so that its estimates are calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from selftrain._util.choices import Rule
from selftrain._util.types import BoolArray, Float32Array, FloatArray, IntArray
from selftrain.act.budget import inclusion, systematic_sample
from selftrain.act.error_estimate import ErrorEstimate, label_error
from selftrain.errors import BudgetError

if TYPE_CHECKING:
    from backbones.base import FeatureLayout
    from selftrain.models.head import HeadClassifier, HeadSettings


class SimulatedReview(NamedTuple):
    """One review of a simulated sample: what it estimates, and the true share of wrong labels."""

    estimate: ErrorEstimate
    truth: float


class Population(NamedTuple):
    """Which labels are wrong [N], and what the criticizer says of each [N]."""

    wrong: BoolArray
    errors: FloatArray


class LabelSet(NamedTuple):
    """Labels of the training posts, as class indices; the human ones are read where reviewed."""

    machine: IntArray  # [M]
    human: IntArray  # [M]
    reviewed: BoolArray  # [M] delta
    inclusion: FloatArray  # [M] pi


def labelled_set(labels: IntArray) -> LabelSet:
    """Labels that are all trusted alike: with them the ACT loss is the cross-entropy."""
    nobody = np.zeros(len(labels), dtype=bool)
    return LabelSet(labels, labels, nobody, np.ones(len(labels)))


def trained_on(
    labels: LabelSet,
    rows: Float32Array,
    validation_rows: Float32Array,
    validation_labels: IntArray,
    *,
    classes: Sequence[str],
    layout: FeatureLayout,
    settings: HeadSettings,
    seed: int,
) -> HeadClassifier:
    """A head trained with the ACT loss on rows [M, D]."""
    from selftrain.act.training import ACTTrainer

    human = [
        classes[one] if known else None for one, known in zip(labels.human, labels.reviewed, strict=True)
    ]
    model = ACTTrainer(classes, settings=settings, seed=seed).fit(
        rows, [classes[one] for one in labels.machine], human, labels.inclusion,
        validation=(validation_rows, [classes[one] for one in validation_labels]), layout=layout,
    )  # fmt: skip
    return model.classifier


def annotated(labels: IntArray, classes: int, accuracy: float, rng: np.random.Generator) -> IntArray:
    """Machine labels [N]: `round((1 - accuracy) N)` of them wrong, each another class drawn evenly.

    Raises:
        BudgetError: An accuracy outside [0, 1], or fewer than two classes.
    """
    if not 0.0 <= accuracy <= 1.0 or classes < 2:
        raise BudgetError(f"accuracy {accuracy} and {classes} classes: expected one in [0, 1], 2 or more")
    machine = labels.copy()
    wrong = rng.choice(len(labels), round((1.0 - accuracy) * len(labels)), replace=False)
    machine[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return machine


def annotated_like(labels: IntArray, scores: FloatArray, accuracy: float) -> IntArray:
    """Machine labels [N] with systematic errors: wrong where a weak model errs most, and as it errs.

    `round((1 - accuracy) N)` labels are wrong: those of the posts for which the best of the other classes is
    farthest ahead of the right one, which get that class.

    Args:
        labels: [N] right ones.
        scores: [N, K] the weak model's, higher for a likelier class; of posts that it was not trained on.
        accuracy: Of the machine labels, in [0, 1].

    Raises:
        BudgetError: Scores of another shape or not finite, an accuracy outside [0, 1].
    """
    if scores.ndim != 2 or len(scores) != len(labels) or scores.shape[1] <= labels.max(initial=1):
        raise BudgetError(f"scores of shape {scores.shape} for {len(labels)} labels: expected [N, K]")
    if not 0.0 <= accuracy <= 1.0 or not np.isfinite(scores).all():
        raise BudgetError(f"accuracy {accuracy}: expected one in [0, 1], and finite scores")
    places = np.arange(len(labels))
    others = np.array(scores, dtype=np.float64)
    others[places, labels] = -np.inf
    lead = others.max(axis=1) - scores[places, labels]
    wrong = np.argsort(-lead, kind="stable")[: round((1.0 - accuracy) * len(labels))]
    machine = labels.copy()
    machine[wrong] = others[wrong].argmax(axis=1)
    return machine


def criticized(wrong: BoolArray, auc: float, rng: np.random.Generator) -> FloatArray:
    """Calibrated error estimates [N] that tell wrong labels from right ones with this AUC.

    Raises:
        BudgetError: An AUC outside (0, 1).
    """
    if not 0.0 < auc < 1.0:
        raise BudgetError(f"AUC {auc}: expected a number strictly between 0 and 1")
    from scipy.special import expit, ndtri

    # N(mu, 1) against N(0, 1): AUC = Phi(mu / sqrt 2)
    mu = math.sqrt(2.0) * float(ndtri(auc))
    scores = mu * wrong + rng.standard_normal(len(wrong))
    rate = min(max(float(wrong.mean()), 1e-6), 1.0 - 1e-6)
    return np.asarray(expit(math.log(rate / (1.0 - rate)) + mu * scores - mu * mu / 2.0), dtype=np.float64)


def simulated_population(posts: int, *, rate: float, auc: float, seed: int) -> Population:
    """`round(rate posts)` wrong labels, at least one, and a criticizer's estimates."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(posts, dtype=bool)
    wrong[rng.choice(posts, max(1, round(rate * posts)), replace=False)] = True
    return Population(wrong, criticized(wrong, auc, rng))


_REVIEWS_A_POPULATION = 20


def simulated_estimates(
    *, posts: int, budget: int, rate: float, auc: float, rule: Rule, floor: float, reviews: int, seed: int
) -> Iterator[SimulatedReview]:
    """Reviews of samples, twenty of each of as many populations as are needed."""
    for number in range(reviews):
        if number % _REVIEWS_A_POPULATION == 0:
            wrong, errors = simulated_population(posts, rate=rate, auc=auc, seed=seed + number)
            pi = inclusion(errors, budget, rule=rule, floor=floor)
        reviewed = np.zeros(posts, dtype=bool)
        reviewed[systematic_sample(pi, seed + number)] = True
        yield SimulatedReview(label_error(errors, pi, reviewed, wrong), float(wrong.mean()))
