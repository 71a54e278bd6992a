"""What an annotation came to: each question's answers, what is missing, and how good they are where known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agents.judgment import rounded
from selftrain._util.types import Interval, Json
from selftrain.annotation.answers import FINAL, MISSING, known_answers, table
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task
from selftrain.models.intervals import wilson

NO_ANSWER = "(none)"
_REASONS = 20


class AnswerPair(NamedTuple):
    """A person's answer and the model's; None where it gave none."""

    known: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class AnswerMetrics:
    """One question, on the posts whose answer is known.

    Attributes:
        posts: How many there are, n.
        answered: How many of them the model answered.
        accuracy: Right answers among those answered, with a 95 % Wilson interval.
        macro_f1: MeanMetrics F1 of the answers that a person or the model gave, on the posts answered.
        balanced_accuracy: MeanMetrics recall of the answers that a person gave, on the posts answered.
        majority: Share of the commonest known answer among the posts answered: the accuracy of always giving
            it.
        confusion: Known answer -> model's answer, `NO_ANSWER` included -> count.
    """

    posts: int
    answered: int
    accuracy: Interval
    macro_f1: float
    balanced_accuracy: float
    majority: float
    confusion: Mapping[str, Mapping[str, int]]

    @property
    def missing(self) -> float:
        """Share of the posts without an answer, in [0, 1]."""
        return 1 - self.answered / self.posts

    def to_json(self) -> Json:
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


def answer_metrics(pairs: Sequence[AnswerPair], answers: Sequence[str]) -> AnswerMetrics | None:
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
    return AnswerMetrics(
        len(pairs),
        len(given),
        wilson(sum(right.values()), len(given)),
        sum(2 * right[a] / (known_of[a] + given_of[a]) for a in met) / len(met),
        sum(right[a] / known_of[a] for a in answers if known_of[a]) / len(known_of),
        max(known_of.values()) / len(given),
        confusion,
    )


class MeanMetrics(NamedTuple):
    """Means over questions, each counting the same."""

    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    missing: float


def mean_metrics(each: Sequence[AnswerMetrics]) -> MeanMetrics | None:
    """The means of several questions' figures; None of none."""
    if not each:
        return None
    count = len(each)
    return MeanMetrics(
        sum(one.accuracy.value for one in each) / count,
        sum(one.macro_f1 for one in each) / count,
        sum(one.balanced_accuracy for one in each) / count,
        sum(one.missing for one in each) / count,
    )


# ---- the report ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QuestionReport:
    """One question over all posts.

    Attributes:
        name, wording: Of the question.
        counting: Its counting rule, or None.
        answered: Posts with an answer of the model, an earlier one's included.
        answers: Answer -> posts, of the model's answers.
        missing: Reason -> posts, the commonest first.
        known: Against persons' answers; None where there are none.
    """

    name: str
    wording: str
    counting: str | float | None
    answered: int
    answers: Mapping[str, int]
    missing: Mapping[str, int]
    known: AnswerMetrics | None

    def to_json(self) -> Json:
        """A record of JSON values."""
        return {
            "wording": self.wording,
            "counting": self.counting,
            "answered": self.answered,
            "answers": dict(self.answers),
            "missing": dict(self.missing),
            "known": None if self.known is None else self.known.to_json(),
        }


@dataclass(frozen=True, slots=True)
class AnnotationReport:
    """The whole annotation.

    Attributes:
        posts: In the manifest that was written.
        complete: Of these, posts with an answer to every question, a person's or the model's.
        questions: Those asked, in the task's order.
        final: The final question asked directly; None where it was not asked.
    """

    posts: int
    complete: int
    questions: tuple[QuestionReport, ...]
    final: QuestionReport | None

    def to_json(self) -> Json:
        """A record of JSON values."""
        process = [one.known for one in self.questions if one.known is not None]
        averaged = mean_metrics(process)
        final = None if self.final is None else self.final.known
        return {
            "posts": self.posts,
            "complete": {"posts": self.complete, "share": rounded(self.complete / max(self.posts, 1))},
            "questions": {one.name: one.to_json() for one in self.questions},
            "final": None if self.final is None else self.final.to_json(),
            "comparison": {
                "process": None if averaged is None else rounded(averaged._asdict()),
                "final": None
                if final is None
                else {
                    "accuracy": rounded(final.accuracy.value),
                    "macro_f1": rounded(final.macro_f1),
                    "balanced_accuracy": rounded(final.balanced_accuracy),
                    "missing": rounded(final.missing),
                },
            },
        }


def annotation_report(
    posts: Sequence[Post], task: Task, questions: Sequence[Question], direct: bool
) -> AnnotationReport:
    """The report of posts as they are written.

    Args:
        posts: With answers filled in.
        task: For the classes.
        questions: Those asked.
        direct: Whether the final question was asked too.
    """
    said = [known_answers(post) for post in posts]
    lacking = [table(post, MISSING) for post in posts]

    def one(name: str, wording: str, counting: str | float | None, answers: Sequence[str]) -> QuestionReport:
        given = [_valid(each.model.get(name), answers) for each in said]
        # a post counts where the question was put to it: those beyond a limit say nothing of the model
        pairs = [
            AnswerPair(each.known[name], answer)
            for each, answer, reasons in zip(said, given, lacking, strict=True)
            if name in each.known and (answer is not None or name in reasons)
        ]
        told = Counter(answer for answer in given if answer is not None)
        reasons = Counter(
            str(reasons[name])
            for reasons, answer in zip(lacking, given, strict=True)
            if name in reasons and answer is None
        )
        return QuestionReport(
            name,
            wording,
            counting,
            sum(told.values()),
            {answer: told[answer] for answer in answers},
            _commonest(reasons),
            answer_metrics(pairs, answers),
        )

    names = [question.name for question in questions]
    return AnnotationReport(
        len(posts),
        sum(all(name in post.process for name in names) for post in posts),
        tuple(one(q.name, q.wording, q.counting, q.answers) for q in questions),
        one(FINAL, "", None, task.names) if direct else None,
    )


def _valid(entry: Mapping[str, Any] | None, answers: Sequence[str]) -> str | None:
    """A recorded answer; one that the task no longer offers is none."""
    answer = None if entry is None else entry.get("answer")
    return answer if answer in answers else None


def _commonest(reasons: Counter[str]) -> dict[str, int]:
    """The commonest reasons; what the rest comes to under one name."""
    listed = dict(reasons.most_common(_REASONS))
    rest = reasons.total() - sum(listed.values())
    return listed | ({"other reasons": rest} if rest else {})
