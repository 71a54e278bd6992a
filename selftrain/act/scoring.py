"""How well models annotate and criticize, on posts of known label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.ask.annotator import Annotation
from agents.ask.criticizer import Criticism
from agents.trust import Proportion, wilson
from selftrain._util.types import BoolArray, FloatArray
from selftrain.act.budget import filled
from selftrain.act.quality_gap import abs_score

RESAMPLES = 1000


class AnnotatorScore(NamedTuple):
    """How a model annotates.

    Attributes:
        model: Its name.
        mode: "plain" or "reasoning".
        accuracy: Right labels among all posts, with its Wilson interval; a post without a label counts as
            wrong.
        posts: How many there were.
        unlabelled: Of them, those without a label.
        tokens: CachedAnswer for them now; what was stored already cost nothing.
    """

    model: str
    mode: str
    accuracy: Proportion
    posts: int
    unlabelled: int
    tokens: int


class CriticizerScore(NamedTuple):
    """How a model finds the annotator's errors in one way of asking.

    Attributes:
        model: Its name.
        strategy: See `agents.ask.criticizer.strategies`.
        auc: Of its estimates for wrong against right labels, with its bootstrap interval; None where no
            label, or every label, is wrong.
        abs: ABS, see `selftrain.act.quality_gap`; None where no label is wrong.
        mean_error: Mean estimate: what the criticizer takes the error share for.
        missing: Posts without an estimate; they count with the mean of the others.
        tokens: As for annotators.
    """

    model: str
    strategy: str
    auc: Proportion | None
    abs: float | None
    mean_error: float
    missing: int
    tokens: int


def annotator_score(
    model: str, mode: str, annotations: Sequence[Annotation], truth: Sequence[str | None], tokens: int
) -> AnnotatorScore:
    """Accuracy of annotations against the posts' labels."""
    right = sum(a.label == label for a, label in zip(annotations, truth, strict=True))
    unlabelled = sum(a.label is None for a in annotations)
    return AnnotatorScore(model, mode, wilson(right, len(truth)), len(truth), unlabelled, tokens)


def criticizer_score(
    model: str,
    strategy: str,
    criticisms: Sequence[Criticism],
    wrong: BoolArray,
    tokens: int,
    *,
    seed: int = 0,
) -> CriticizerScore:
    """How well estimates find the wrong labels.

    A post without a label is wrong for sure and needs no criticizer: it is left out of AUC and ABS.
    """
    asked = np.array([not one.fault.startswith("not annotated") for one in criticisms])
    errors = filled([one.error for one, kept in zip(criticisms, asked, strict=True) if kept])
    faults = wrong[asked]
    return CriticizerScore(
        model, strategy, auc_interval(faults, errors, seed),
        abs_score(faults, errors) if len(faults) else None,
        float(errors.mean()) if len(errors) else 1.0,
        sum(one.error is None for one, kept in zip(criticisms, asked, strict=True) if kept), tokens,
    )  # fmt: skip


def auc_interval(wrong: BoolArray, errors: FloatArray, seed: int = 0) -> Proportion | None:
    """AUC and its 95 % percentile interval over bootstrap draws of posts; None where only one kind occurs."""
    value = _auc(wrong, errors)
    if value is None:
        return None
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(wrong), len(wrong)) for _ in range(RESAMPLES))
    found = [auc for drawn in draws if (auc := _auc(wrong[drawn], errors[drawn])) is not None]
    low, high = np.quantile(found, [0.025, 0.975])
    return Proportion(value, float(low), float(high))


def _auc(wrong: BoolArray, errors: FloatArray) -> float | None:
    """P(a wrong label's estimate is larger than a right one's), ties counting half."""
    from scipy.stats import rankdata

    positive, negative = int(wrong.sum()), int((~wrong).sum())
    if not positive or not negative:
        return None
    ranks = float(rankdata(errors)[wrong].sum())
    return (ranks - positive * (positive + 1) / 2) / (positive * negative)
