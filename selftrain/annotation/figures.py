"""How good a model's answers are where a person's are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agents.records import rounded
from agents.trust import Proportion, wilson

NO_ANSWER = "(none)"


class Pair(NamedTuple):
    """A person's answer and the model's; None where it gave none."""

    known: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Figures:
    """One question, on the posts whose answer is known.

    Attributes:
        posts: How many there are, n.
        answered: How many of them the model answered.
        accuracy: Right answers among those answered, with a 95 % Wilson interval.
        macro_f1: Mean F1 of the answers that a person or the model gave, on the posts answered.
        balanced_accuracy: Mean recall of the answers that a person gave, on the posts answered.
        majority: Share of the commonest known answer among the posts answered: the accuracy of always giving
            it.
        confusion: Known answer -> model's answer, `NO_ANSWER` included -> count.
    """

    posts: int
    answered: int
    accuracy: Proportion
    macro_f1: float
    balanced_accuracy: float
    majority: float
    confusion: Mapping[str, Mapping[str, int]]

    @property
    def missing(self) -> float:
        """Share of the posts without an answer, in [0, 1]."""
        return 1 - self.answered / self.posts

    def to_json(self) -> dict[str, Any]:
        """A record of JSON values."""
        return {
            "posts": self.posts,
            "answered": self.answered,
            "missing": rounded(self.missing),
            "accuracy": rounded(self.accuracy._asdict()),
            "macro_f1": rounded(self.macro_f1),
            "balanced_accuracy": rounded(self.balanced_accuracy),
            "majority": rounded(self.majority),
            "confusion": rounded(self.confusion),
        }


def figures(pairs: Sequence[Pair], answers: Sequence[str]) -> Figures | None:
    """Figures of one question; None where the model answered no post of known answer.

    Args:
        pairs: One a post of known answer, n of them.
        answers: The question's answers, in the order of the confusion's rows and columns.
    """
    given = [(known, answer) for known, answer in pairs if answer is not None]
    if not given:
        return None
    counts = Counter((known, answer or NO_ANSWER) for known, answer in pairs)
    columns = [*answers, NO_ANSWER]
    confusion = {known: {answer: counts[known, answer] for answer in columns} for known in answers}
    known_of, given_of = Counter(known for known, _ in given), Counter(answer for _, answer in given)
    right = {answer: counts[answer, answer] for answer in answers}
    met = [answer for answer in answers if known_of[answer] + given_of[answer]]
    return Figures(
        len(pairs),
        len(given),
        wilson(sum(right.values()), len(given)),
        sum(2 * right[a] / (known_of[a] + given_of[a]) for a in met) / len(met),
        sum(right[a] / known_of[a] for a in answers if known_of[a]) / len(known_of),
        max(known_of.values()) / len(given),
        confusion,
    )


class Mean(NamedTuple):
    """Means over questions, each counting the same."""

    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    missing: float


def mean(each: Sequence[Figures]) -> Mean | None:
    """The means of several questions' figures; None of none."""
    if not each:
        return None
    count = len(each)
    return Mean(
        sum(one.accuracy.value for one in each) / count,
        sum(one.macro_f1 for one in each) / count,
        sum(one.balanced_accuracy for one in each) / count,
        sum(one.missing for one in each) / count,
    )
