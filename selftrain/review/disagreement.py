"""Error estimates without a criticizer: from what classifier and agents said of a post in a round.

Every voice spreads probability over the classes; the label is the class with the largest mean, and

    e = 1 - mean over the voices of the probability that each gives the label.

All of one mind and sure: e near 0. Reviewer and User against each other, or nobody sure: e near one half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from agents.judgment import Judgment, Verdict
from selftrain.errors import BudgetError


class MachineLabel(NamedTuple):
    """A post's machine label and the probability that it is wrong, in [0, 1]."""

    post_id: str
    label: str
    error: float


def error_estimates(
    verdicts: Iterable[Verdict], classes: Sequence[str], *, labels: Mapping[str, str] | None = None
) -> list[MachineLabel]:
    """How likely the machines' labels of some posts are wrong, by what the verdicts on them say.

    A voice that names a class with a probability gives the rest to the others evenly, unless it states what
    each gets; one that names a class without a probability gives it all. An abstention or a failed judgment
    says nothing: every class gets the same. Agents count by their last judgment, the classifier as one voice.

    Args:
        verdicts: One a post.
        classes: The task's class names, two or more.
        labels: Post id -> the label whose error is asked for (a pseudo-label, say); by default the one that
            the voices give together.

    Raises:
        BudgetError: A verdict that names an unknown class.
    """
    return [_error_estimate(verdict, tuple(classes), labels or {}) for verdict in verdicts]


def _error_estimate(verdict: Verdict, classes: tuple[str, ...], labels: Mapping[str, str]) -> MachineLabel:
    said = _one(verdict.classifier_label, verdict.classifier_probability, {}, classes)
    voices = [said, *(_voice(judgments[-1], classes) for judgments in verdict.by_agent().values())]
    means = {name: sum(voice[name] for voice in voices) / len(voices) for name in classes}
    label = labels.get(verdict.post_id) or max(classes, key=lambda name: means[name])
    if label not in means:
        raise BudgetError(
            f"post {verdict.post_id!r} bears the label {label!r}: expected one of {list(classes)}"
        )
    return MachineLabel(verdict.post_id, label, min(max(1.0 - means[label], 0.0), 1.0))


def _voice(judgment: Judgment, classes: tuple[str, ...]) -> dict[str, float]:
    if judgment.label is None:
        return dict.fromkeys(classes, 1.0 / len(classes))
    stated = judgment.details.get("probabilities") or {}
    return _one(judgment.label, judgment.probability, stated, classes)


def _one(
    label: str, probability: float | None, stated: Mapping[str, float], classes: tuple[str, ...]
) -> dict[str, float]:
    """Class -> probability of one voice, adding up to 1."""
    if label not in classes:
        raise BudgetError(f"a verdict names the class {label!r}: expected one of {list(classes)}")
    if set(stated) == set(classes):
        return {name: float(stated[name]) for name in classes}
    given = 1.0 if probability is None else float(probability)
    rest = (1.0 - given) / (len(classes) - 1)
    return {name: given if name == label else rest for name in classes}
